"""A search trains every candidate and answers validation cases; no test case is read."""

from __future__ import annotations

from demo.search import search
from medstudy.params import RunParams
from medstudy.runs import run_folder


def test_each_candidate_is_a_row_and_no_test_case_is_answered(params: RunParams) -> None:
    rates = {
        arm: [{f"{arm}_learning_rate": rate} for rate in (1e-4, 1e-3)] for arm in ("sft_more", "sft_chosen", "dpo")
    }
    sizes = {"n_train": 8, "n_prefer": 8, "n_valid": 6, "n_test": 10, "candidates": rates, "pair_source": "labels"}
    rows = search(params.model_copy(update=sizes))
    assert [row["arm"] for row in rows] == ["sft", *["dpo"] * 2, *["sft_more"] * 2, *["sft_chosen"] * 2]
    assert sum(row["chosen"] for row in rows) == 4 and {row["n"] for row in rows} == {6}
    assert [row["score"] is None for row in rows] == [True] + [False] * 6  # of SFT there was one, and nothing to choose
    made = {path.name for path in (run_folder(params) / "private" / "stages").iterdir()}
    assert made == {"sft", "dpo", "sft_more", "sft_chosen", *(f"validation_{arm}" for arm in rates)}
