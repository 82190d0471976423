"""Settings are chosen on validation cases, equally many for each arm, and written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from trl import SFTTrainer

from medstudy.data.card import DataCard
from medstudy.data.cases import Case
from medstudy.data.splits import Splits
from medstudy.evaluation import choose as choose_module
from medstudy.evaluation.choose import choose
from medstudy.params import ParamsError, RunParams, resolve
from medstudy.runs import Run
from medstudy.tasks import get_task
from medstudy.training.arguments import lora_config, sft_config
from medstudy.training.fit import fit
from medstudy.training.prompts import sft_row


def test_the_best_on_validation_becomes_the_arm_and_all_is_written_down(
    params: RunParams, card: DataCard, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of this size learns nothing, so the scores are given; the answers they would be made of are real."""
    given, real = iter([0.2, 0.6, 0.6]), choose_module._score
    monkeypatch.setattr(choose_module, "_score", lambda *args: real(*args) * 0 + next(given))
    rates = {"sft": [{"sft_learning_rate": rate, "sft_epochs": 2.0} for rate in (1e-8, 1e-3, 1e-2)]}
    params = params.model_copy(update={"candidates": rates, "max_new_tokens": 8})
    run, task = Run(params), get_task("text_classification", card)
    splits = Splits(cases, [], cases[:4], [])
    run.keep("splits", splits)
    rows = [sft_row(task, case) for case in cases]
    trials = [
        (tried, fit(run, "sft", SFTTrainer, sft_config(tried, run), rows, start=lora_config(params)))
        for tried in params.tries("sft")
    ]
    stage, table = choose(run, "sft", task, splits.validation, trials)
    assert table["score"].tolist() == [0.2, 0.6, 0.6] and set(table["n"]) == {4}
    assert table["chosen"].tolist() == [False, True, False]  # of equal ones the first
    assert stage is run.stages["sft"] is trials[1][1]
    assert stage.made_with["sft_learning_rate"] == 1e-3
    assert not list((Path(run.private) / "stages").glob("answers_*"))  # no test case was answered
    private = get_task("text_classification", card.model_copy(update={"shareable": False}))
    given = iter([0.2, 0.6, 0.6])  # the scores of 4 patients
    stage, table = choose(run, "sft", private, splits.validation, trials)
    assert set(table["score"]) == {"hidden"} and set(table["n"]) == {"< 11"} and hasattr(table, "_repr_mimebundle_")
    assert [row["score"] for row in run.tried["sft"]] == [0.2, 0.6, 0.6] and stage is trials[1][1]  # the gate knows it
    assert {row["score"] for row in run.told["sft"]} == {"hidden"}
    alone, table = choose(run, "sft", task, splits.validation, trials[:1])  # nothing to choose from, nothing answered
    assert alone is trials[0][1] and list(table) == ["sft_learning_rate", "sft_epochs"]


def test_candidates_that_are_not_fair_or_not_settings_are_refused() -> None:
    for candidates, said in (
        ({"dpo": [{"dpo_beta": 0.1}, {"dpo_beta": 0.3}]}, "as many for each arm after SFT"),
        ({"sft": [{"dpo_beta": 0.1}]}, "'dpo_beta' is none of sft_learning_rate, sft_epochs"),
    ):
        with pytest.raises(ParamsError, match=said):
            resolve({"task": "summarization", "candidates": candidates})
