"""Blinded sheets and what comes back: arms hidden, faults located, statistics from scipy and scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from made_up import study
from scipy.stats import wilcoxon

from medstudy.data.cases import Case, DataError
from medstudy.data.load import load_card
from medstudy.params import resolve
from medstudy.report import ratings
from medstudy.tasks import get_task
from medstudy.training.preferences import make_pairs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with predictions and cases; answers do not say whose they are."""
    (tmp_path / "private").mkdir()
    table = study({"base": 0.1, "sft": 0.5, "dpo": 0.7}, n=30)
    table["output"] = [f"says {i}" for i in range(len(table))]
    table.to_parquet(tmp_path / "private" / "predictions.parquet")
    cases = [{"case_id": i, "texts": [f"dialogue of {i}", "gold"]} for i in table["case_id"].unique()]
    pd.DataFrame(cases).to_parquet(tmp_path / "private" / "cases.parquet")
    return tmp_path


def filled(run: Path, raters: list[str], cases: int) -> list[Path]:
    """Sheets of raters who like DPO best, and are a little noisy."""
    files, key = ratings.export(run, raters, cases), pd.read_parquet(run / "private" / "ratings" / "key.parquet")
    arms, liked = key.set_index("row")["arm"], {"base": 1, "sft": 3, "dpo": 5}
    for shift, file in enumerate(files):
        sheet = pd.read_excel(file)
        sheet["rating"] = [min(5, liked[arms[r]] + ((int(r[1:]) + shift) % 3 == 0)) for r in sheet["row"]]
        sheet.to_excel(file, index=False)
    return files


def test_sheets_hide_the_arms_and_differ_in_order(run: Path) -> None:
    first, second = (pd.read_excel(f) for f in ratings.export(run, ["ab", "cd"], cases=20))
    assert list(first.columns) == ["row", "case", "answer", "rating", "comment"] and len(first) == 60
    assert list(first["row"]) != list(second["row"]) and set(first["row"]) == set(second["row"])
    assert not first.astype(str).stack().str.contains(r"\b(?:sft|dpo|base)\b").any()
    with pytest.raises(DataError, match="holds sheets already"):
        ratings.export(run, ["ab"], cases=20)


def test_ratings_of_answers_that_have_changed_since_are_refused(run: Path) -> None:
    sheets, file = filled(run, ["ab"], 5), run / "private" / "predictions.parquet"
    pd.read_parquet(file).assign(output="something else").to_parquet(file)
    with pytest.raises(DataError, match="has been done again since the export"):
        ratings.import_sheets(run, sheets)


def test_what_raters_say_comes_back_by_arm_and_becomes_pairs(run: Path) -> None:
    found = ratings.import_sheets(run, filled(run, ["ab", "cd"], 20))
    assert found == json.loads((run / "ratings.json").read_text()) and "dialogue" not in str(found)
    assert found["arms"]["dpo"]["mean"] > found["arms"]["sft"]["mean"] > found["arms"]["base"]["mean"]
    file = run / "private" / "ratings" / "ratings.csv"
    wide = pd.read_csv(file).groupby(["case_id", "arm"])["rating"].mean().unstack()
    [row] = [row for row in found["contrasts"] if row["contrast"] == "dpo-sft"]
    assert row["p"] == pytest.approx(wilcoxon(wide["dpo"] - wide["sft"]).pvalue) and row["n"] == 20
    [pair] = found["agreement"]
    assert 0.5 < pair["weighted_kappa"] < 1
    words = {"task": "summarization", "data": "synthetic_dialogues", "pair_source": "ratings"}
    params = resolve(words | {"pair_file": str(file), "pairs_per_case": 2})
    cases = [Case(i, i, "text", {"summary": "gold"}) for i in wide.index]
    made = make_pairs(params, get_task("summarization", load_card("synthetic_dialogues")), cases)
    assert len(made.pairs) == 40  # DPO's answer against the two others, twenty cases


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
    [file] = filled(run, ["ab"], 5)
    spoil(pd.read_excel(file)).to_excel(file, index=False)
    with pytest.raises(DataError, match=message):
        ratings.import_sheets(run, [file])
    with pytest.raises(DataError, match="no arm 'few_shot'"):
        ratings.export(run, ["ab"], arms=["few_shot"])
