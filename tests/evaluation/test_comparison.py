"""Every number follows from the predictions: computed again, it comes out the same, and a change is named."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from test_report import finished

from medstudy.data.cases import DataError
from medstudy.evaluation import comparison, views
from medstudy.evaluation.evaluate import evaluate
from medstudy.evaluation.verdict import Rules
from medstudy.files import write_json


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two finished runs with their metrics, and the study's tables as the notebook writes them."""
    for seed in (0, 1):
        folder = finished(tmp_path, seed)
        table = pd.read_parquet(folder / "private" / "predictions.parquet")
        if seed:  # another training answers some cases otherwise
            table.loc[table.index % 5 == 0, "answer"] = json.dumps({"label": "no"})
            table.to_parquet(folder / "private" / "predictions.parquet")
        table.attrs["shareable"] = True
        metrics, contrasts = evaluate(table, "text_classification", {"label": ["no", "yes"]}, "yes")
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "contrasts.json", contrasts)
    save(tmp_path, 0.03)
    return tmp_path


def save(study: Path, margin: float) -> None:
    cells = comparison.study_cells(comparison.finished_runs(study))
    comparison.save_tables(study, comparison.study_tables(cells, Rules(margin)))


def test_computed_again_by_its_own_margin_everything_comes_out_the_same(study: Path) -> None:
    before = {name: (study / name).read_bytes() for name in ("verdicts.csv", "tables/contrasts.csv")}
    assert comparison.rules_of(study) == Rules()
    assert comparison.recompute(study)[1] == []
    assert before == {name: (study / name).read_bytes() for name in before}
    assert r"\begin{tabular}" in (study / "tables" / "verdicts.tex").read_text()
    assert "t over seeds and cases" in set(pd.read_csv(study / "tables" / "contrasts.csv")["test"])
    save(study, 0.05)
    assert comparison.rules_of(study).margin == 0.05
    assert comparison.recompute(study)[1] == []


def test_a_number_that_does_not_follow_from_the_predictions_is_named(study: Path) -> None:
    file = next(study.glob("*/*/seed1/metrics.json"))
    metrics = json.loads(file.read_text())
    metrics["dpo"]["f1"]["value"] = 0.99
    write_json(file, metrics)
    (study / "verdicts.csv").write_text("edited\n")
    assert comparison.recompute(study)[1] == [str(file), str(study / "verdicts.csv")]


def test_the_runs_that_went_in_are_a_table_that_may_leave(study: Path) -> None:
    table = views.runs(comparison.finished_runs(study))
    assert table["failed gates"].tolist() == ["none"] * 2 and hasattr(table, "_repr_mimebundle_")


def test_runs_that_differ_in_more_than_their_seed_are_not_pooled(study: Path, tmp_path: Path) -> None:
    file = next(study.glob("*/*/seed1/run.json"))
    record = json.loads(file.read_text())
    record["parameters"]["n_train"] = 5
    write_json(file, record)
    with pytest.raises(DataError, match="seeds 0 and 1 differ in n_train = 100 and 5; move one of"):
        comparison.recompute(study)
    with pytest.raises(DataError, match="no finished run; see: medstudy status"):
        comparison.recompute(tmp_path / "none")


def test_a_study_without_a_finished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run of this study: look at `study`"):
        comparison.study_cells(comparison.finished_runs(tmp_path))
