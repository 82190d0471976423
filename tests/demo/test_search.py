"""A search trains every candidate and answers validation cases; no test case is read."""

from __future__ import annotations

from demo.search import search
from medstudy.arms import TRAINED
from medstudy.params import RunParams
from medstudy.runs import run_folder
from medstudy.training.checks import CONTROLS


def test_each_candidate_is_a_row_and_no_test_case_is_answered(params: RunParams) -> None:
    later = ["dpo", *CONTROLS]
    rates = {arm: [{f"{arm}_learning_rate": rate} for rate in (1e-4, 1e-3)] for arm in later}
    sizes = {"n_train": 8, "n_prefer": 8, "n_valid": 6, "n_test": 10, "candidates": rates, "pair_source": "labels"}
    rows = search(params.model_copy(update=sizes))
    assert [row["arm"] for row in rows] == ["sft", *(arm for arm in later for _ in range(2))]
    assert sum(row["chosen"] for row in rows) == len(TRAINED) and {row["n"] for row in rows} == {6}
    # of SFT there was one, and nothing to choose from
    assert [row["score"] is None for row in rows] == [True] + [False] * 2 * len(later)
    made = {path.name for path in (run_folder(params) / "private" / "stages").iterdir()}
    assert made == {*TRAINED, *(f"validation_{arm}" for arm in rates)}
