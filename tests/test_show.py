"""The tag belongs to what the package made, and to nothing that was made of it."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.display import Markdown
from matplotlib.figure import Figure

from medstudy.show import TAG, aggregate


def shown(thing: object) -> tuple[dict, list[str]]:
    """What a notebook would keep of a thing, and which forms of it are tagged."""
    data, metadata = DisplayFormatter().format(thing)
    return data, metadata.get(TAG, [])


def table() -> pd.DataFrame:
    rows = [("f1", 0.5, "< 11", "< 0.001"), ("accuracy", None, 12, "")]
    return pd.DataFrame(rows, columns=["metric", "value", "n", "p"], index=["dpo", "sft"])


def test_a_table_is_shown_as_pandas_shows_it_and_a_sentence_too() -> None:
    data, tagged = shown(aggregate(table(), ["", "metric"]))
    assert tagged == ["text/html", "text/plain"] and data["text/html"] == table().to_html()
    assert shown(aggregate(table().style, ["", "metric"]))[1]
    assert shown(aggregate(table().set_index("metric"), ["metric"]))[1]
    assert shown(aggregate(Markdown("DPO +0.1, n 40")))[1] == ["text/markdown"]
    assert shown(Markdown("Ferdinand"))[1] == []


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({}, ["metric"]),  # the index
        ({}, [""]),
        ({"p": "Ferdinand"}, ["", "metric"]),
        ({"p": "17.03.2019"}, ["", "metric"]),
    ],
)
def test_text_that_is_not_the_packages_gets_no_tag(cells: dict[str, str], words: list[str]) -> None:
    assert shown(aggregate(table().assign(**cells), words))[1] == []


@pytest.mark.parametrize("change", [pd.DataFrame.head, pd.DataFrame.copy, lambda t: t.assign(name="Ferdinand")])
def test_what_is_made_of_a_tagged_table_has_no_tag(change) -> None:
    assert shown(change(aggregate(table(), ["", "metric"])))[1] == []


def test_a_tagged_table_that_is_changed_loses_its_tag() -> None:
    made = aggregate(table(), ["", "metric"])
    made["name"] = "Ferdinand"
    data, tagged = shown(made)
    assert tagged == [] and "Ferdinand" in data["text/html"]


def test_a_figure_that_is_changed_loses_its_tag() -> None:
    with mpl.rc_context({"figure.constrained_layout.use": True, "svg.hashsalt": "x"}):
        figure = Figure()
        axis = figure.subplots()
        axis.plot([1, 2], label="DPO")
        aggregate(figure)
    data, tagged = shown(figure)
    assert tagged == ["image/svg+xml", "image/png"] and data["image/svg+xml"].startswith("<svg")
    axis.set_title("Ferdinand")
    assert shown(figure)[1] == []
