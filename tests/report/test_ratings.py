"""Blinded sheets and what comes back: arms hidden, faults located, statistics from scipy and scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from made_up import study
from scipy.stats import wilcoxon

from medstudy.data.cases import DataError
from medstudy.params import resolve
from medstudy.report import ratings
from medstudy.training.preferences import make_pairs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with predictions and cases."""
    (tmp_path / "private").mkdir()
    table = study({"base": 0.1, "sft": 0.5, "dpo": 0.7}, n=30)
    table["output"] = [f"{arm} says {i}" for i, arm in enumerate(table["arm"])]
    table["output"] = table["output"].str.replace("^(base|sft|dpo) ", "", regex=True)
    table.to_parquet(tmp_path / "private" / "predictions.parquet")
    cases = [{"case_id": i, "texts": [f"dialogue of {i}", "gold"]} for i in table["case_id"].unique()]
    pd.DataFrame(cases).to_parquet(tmp_path / "private" / "cases.parquet")
    return tmp_path


def filled(run: Path, file: Path, shift: int = 0) -> Path:
    """A rater who likes DPO best, and is a little noisy."""
    key = pd.read_csv(run / "private" / "ratings" / "key.csv").set_index("row")["arm"]
    sheet = pd.read_excel(file)
    liked = {"base": 1, "sft": 3, "dpo": 5}
    sheet["rating"] = [min(5, liked[key[r]] + ((int(r[1:]) + shift) % 3 == 0)) for r in sheet["row"]]
    sheet.to_excel(file, index=False)
    return file


def test_sheets_hide_the_arms_and_differ_in_order(run: Path) -> None:
    first, second = (pd.read_excel(f) for f in ratings.export(run, ["ab", "cd"], cases=20))
    assert list(first.columns) == ["row", "case", "answer", "rating", "comment"]
    assert len(first) == 60
    assert list(first["row"]) != list(second["row"]) and set(first["row"]) == set(second["row"])
    assert not first.astype(str).stack().str.contains(r"\b(?:sft|dpo|base)\b").any()
    with pytest.raises(DataError, match="holds sheets already"):
        ratings.export(run, ["ab"], cases=20)


def test_ratings_of_answers_that_have_changed_since_are_refused(run: Path) -> None:
    sheets = [filled(run, file) for file in ratings.export(run, ["ab"], cases=5)]
    file = run / "private" / "predictions.parquet"
    pd.read_parquet(file).assign(output="something else").to_parquet(file)
    with pytest.raises(DataError, match="has been done again since the export"):
        ratings.import_sheets(run, sheets)


def test_what_raters_say_comes_back_by_arm(run: Path) -> None:
    sheets = [filled(run, file, i) for i, file in enumerate(ratings.export(run, ["ab", "cd"], cases=20))]
    found = ratings.import_sheets(run, sheets)
    assert found == json.loads((run / "ratings.json").read_text())
    assert found["arms"]["dpo"]["mean"] > found["arms"]["sft"]["mean"] > found["arms"]["base"]["mean"]
    kept = pd.read_csv(run / "private" / "ratings" / "ratings.csv")
    wide = kept.groupby(["case_id", "arm"])["rating"].mean().unstack()
    [row] = [row for row in found["contrasts"] if row["contrast"] == "dpo-sft"]
    assert row["p"] == pytest.approx(wilcoxon(wide["dpo"] - wide["sft"]).pvalue)
    assert row["n"] == 20
    [pair] = found["agreement"]
    assert 0.5 < pair["weighted_kappa"] < 1
    assert "dialogue" not in (run / "ratings.json").read_text()


def test_ratings_become_pairs(run: Path) -> None:
    from medstudy.data.cases import Case
    from medstudy.data.load import load_card
    from medstudy.tasks import get_task

    ratings.import_sheets(run, [filled(run, file) for file in ratings.export(run, ["ab"], cases=5)])
    file = run / "private" / "ratings" / "ratings.csv"
    ids = pd.read_csv(file)["case_id"].unique()
    cases = [Case(i, i, "text", {"summary": "gold"}) for i in ids]
    words = {"task": "summarization", "data": "synthetic_dialogues", "pair_source": "ratings"}
    params = resolve(words | {"pair_file": str(file), "pairs_per_case": 2})
    made = make_pairs(params, get_task("summarization", load_card("synthetic_dialogues")), cases)
    assert len(made.pairs) == 10  # DPO's answer against the two others, five cases


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.assign(rating=[6, *s["rating"][1:]]), r"line 2: rating 6; allowed: 1, 2, 3, 4, 5"),
        (lambda s: s.assign(rating=[None, *s["rating"][1:]]), r"line 2: rating nan"),
        (lambda s: s.assign(row=["x", *s["row"][1:]]), r"line 2: row 'x' was not exported"),
        (lambda s: s.iloc[1:], r"1 rows are missing"),
        (lambda s: pd.concat([s, s.head(1)]), r"is there twice"),
        (lambda s: s.drop(columns="rating"), r"no column rating"),
    ],
)
def test_a_bad_sheet_is_refused_with_its_line(run: Path, spoil, message: str) -> None:
    [file] = ratings.export(run, ["ab"], cases=5)
    spoil(pd.read_excel(filled(run, file))).to_excel(file, index=False)
    with pytest.raises(DataError, match=message):
        ratings.import_sheets(run, [file])
    with pytest.raises(DataError, match="no arm few_shot"):
        ratings.export(run, ["ab"], arms=["few_shot"])
