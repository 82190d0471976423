"""Published predictions: no word of a case, and every number computed again from them is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from made_up import rows
from test_report import finished

from demo.kept import keep, without_text
from medstudy.data.cases import DataError
from medstudy.evaluation import comparison
from medstudy.evaluation.evaluate import evaluate
from medstudy.files import write_json


def test_numbers_computed_from_what_is_kept_are_the_same(tmp_path: Path) -> None:
    study, target = tmp_path / "study", tmp_path / "kept"
    for seed in (0, 1):
        folder = finished(study, seed)
        table = pd.read_parquet(folder / "private" / "predictions.parquet")
        table.attrs["shareable"] = True
        for name, value in zip(
            ("metrics", "contrasts"),
            evaluate(table, "text_classification", {"label": ["no", "yes"]}, "yes"),
            strict=True,
        ):
            write_json(folder / f"{name}.json", value)
    assert keep(study, target) == 2
    first, _ = comparison.recompute(study)
    again, other = comparison.recompute(target)
    assert other == [] and first["verdicts.csv"].equals(again["verdicts.csv"])
    assert not list(target.rglob("*.ipynb")) and not list(target.rglob("source.json"))


def test_open_answers_are_hashes_and_labels_stay() -> None:
    table = rows("dpo", [{"label": "yes", "reason": "Anna Grobblestone fell"}], [{"label": "no", "reason": "she fell"}])
    told = without_text(table, {"label": ["no", "yes"]})
    assert "fell" not in told.to_csv() and set(told["output"]) == {""}
    assert json.loads(told["gold"][0])["label"] == "yes" and json.loads(told["answer"][0])["label"] == "no"
    same = without_text(rows("sft", [{"reason": "a b"}], [{"reason": "a b"}]), {})
    assert same["gold"][0] == same["answer"][0]


def test_private_runs_are_not_copied(tmp_path: Path) -> None:
    folder = finished(tmp_path / "study", 0)
    record = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", record | {"shareable": False})
    with pytest.raises(DataError, match="private"):
        keep(tmp_path / "study", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
