"""What others may see of patients: the package's own tables and figures, tagged when they are made.

Of a private source only tagged outputs leave ``private/`` (`medstudy.report.withhold`). What makes a table or figure of
counts, shares or tests ends with ``return aggregate(made)``; a slice, a copy, or what was changed later has no tag.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Key in the metadata of a tagged output; its value names the forms that were tagged.
TAG = "medstudy"
#: Key in ``attrs`` of a table whose index and columns the package named (`own`): what it looked like then.
OWN = "named by the package"
#: Stands where a text of a case would stand.
NOT_SHOWN = "[not shown: the data card does not say `shareable: true`]"
#: From so many pairs and optimiser steps on, a preference training can be expected to show something.
ENOUGH_PAIRS, ENOUGH_STEPS = 300, 50
#: What stands beside pairs that are too few to learn from.
TOO_FEW = (
    "{} pairs give {} optimiser steps: too few to expect that DPO learns from them (at least {} and {}). Raise "
    "n_prefer, samples_per_case or pairs_per_case; for more steps, dpo_epochs."
)
_NUMBER = r"\s*[<>=±]?\s*[-+\u2212]?\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?\s*%?\s*"  # no date
_NO_TEXT = re.compile(f"{_NUMBER}|hidden|true|false|nan|none|", re.IGNORECASE)
Made = TypeVar("Made")


def own(table: pd.DataFrame) -> pd.DataFrame:
    """Mark a table whose index and columns the package named, so that `show_counts` may tag it; returns it."""
    table.attrs[OWN] = table.to_csv()
    return table


def is_own(table: pd.DataFrame) -> bool:
    """Whether a table is as the package made it: rows and columns that were added may name a patient or a ward."""
    return table.attrs.get(OWN) == table.to_csv()


def aggregate(made: Made, words: Sequence[str] = (), enough: bool = True) -> Made:
    """Tag what holds only counts, rates and tests, so that it may leave ``private/``; returns it.

    Mask first: counts below `SMALLEST_COUNT` are shown as they stand.

    Args:
        made: a DataFrame or its Styler, a matplotlib Figure, or a Markdown object that the package worded.
        words: columns, and names of the index ("" where it has none), that hold the package's own words. With text
            in any other column, which may be a case's, a table gets no tag.
        enough: it is of so many cases that it tells of no single patients; else it gets no tag.
    """
    if hasattr(made, "savefig"):
        seen, changed = _drawn(made), lambda: made.stale
    elif hasattr(made, "to_html"):
        if _columns_of_text(getattr(made, "data", made), words):
            return made
        html = made.to_html()
        seen, changed = {"text/html": html, "text/plain": repr(made)}, lambda: made.to_html() != html
    else:
        text = made.data
        seen, changed = {"text/markdown": text}, lambda: made.data != text

    def bundle(**_: Any) -> tuple[dict[str, str], dict[str, Any]] | None:
        return None if changed() else (seen, {TAG: list(seen)} if enough else {})

    made._repr_mimebundle_ = bundle
    return made


def _drawn(figure: Figure) -> dict[str, str]:
    """The figure as it is now; matplotlib calls it stale as soon as anything in it changes.

    As PNG, too: JupyterLab shows no SVG of a notebook that it did not run itself, as it may hold a script.
    """
    svg, png = StringIO(), BytesIO()
    figure.savefig(svg, format="svg", bbox_inches="tight", metadata={"Date": None})
    figure.savefig(png, format="png", bbox_inches="tight", metadata={"Software": None}, dpi=110)
    figure.stale = False
    written = svg.getvalue()
    return {"image/svg+xml": written[written.index("<svg") :], "image/png": base64.b64encode(png.getvalue()).decode()}


def _columns_of_text(table: pd.DataFrame, words: Sequence[str]) -> list[str]:
    flat = table.reset_index(names=[str(name or "") for name in table.index.names])
    cells = {str(name): [str(cell) for cell in flat[name]] for name in flat if str(name) not in words}
    return [name for name, column in cells.items() if not all(map(_NO_TEXT.fullmatch, column))]
