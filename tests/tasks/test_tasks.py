"""Prompt, target, parse and score of every task, on cases written by hand."""

from __future__ import annotations

import random

import pytest
from made_up import asked

from medstudy.data.card import DataCard, load_card
from medstudy.data.cases import Case, DataError
from medstudy.data.load import load_cases
from medstudy.data.splits import split_cases
from medstudy.evaluation.metrics import task_metrics
from medstudy.evaluation.predictions import predictions_table
from medstudy.tasks import get_task


@pytest.mark.parametrize("name", ["uti", "urosepsis", "vignettes", "dialogues", "messages"])
def test_an_empty_answer_is_unparsed_and_scores_zero(name: str) -> None:
    card = load_card(f"synthetic_{name}")
    task, case = get_task(card.task, card), load_cases(card).cases[0]
    for text in ("", "   ", "\n\n"):
        assert task.parse(text).status == "unparsed"
        assert set(task.score(task.parse(text), case).values()) == {0.0}


def test_a_card_for_another_task_is_refused() -> None:
    with pytest.raises(DataError, match="synthetic_uti.*text_classification, not summarization"):
        get_task("summarization", load_card("synthetic_uti"))


def test_an_outcome_has_the_name_that_its_card_gives_it() -> None:
    values = load_card("synthetic_uti").model_dump() | {"labels": {"diagnosis": ["no", "yes"]}}
    values["columns"]["gold"] = {"diagnosis": {"column": "label"}}
    card = DataCard.model_validate(values)
    task, case = get_task("text_classification", card), load_cases(card).cases[0]
    answer = task.parse(task.target(case))
    assert answer.value == case.gold and set(case.gold) == {"diagnosis"}
    assert task.score(answer, case) == {"correct": 1.0}
    assert task.wrong_answers(case, [], random.Random(0)) == ["no" if case.gold["diagnosis"] == "yes" else "yes"]
    assert [m.source for m in task_metrics(card.task, card.labels, None) if m.kind == "f1"] == ["diagnosis"]
    table = predictions_table(task, [case], {"sft": ["Answer: " + case.gold["diagnosis"]]})
    assert table["score_correct"].tolist() == [1.0]
    # no outcome in free words: it is what the splits are drawn by
    splits = split_cases(load_cases(card).cases, asked(100, 50, 100, 0, 0))
    assert abs(sum(c.gold["diagnosis"] == "yes" for c in splits.train) - 50) <= 2


def test_reasoning_shows_options_only_where_the_card_says_so() -> None:
    case = Case("c", "g", "a red big toe", {"diagnosis": "gout"}, {"options": {"A": "cellulitis", "B": "gout"}})
    open_ended, choice = (get_task("clinical_reasoning", load_card(n)) for n in ("synthetic_vignettes", "medqa"))
    assert "cellulitis" not in open_ended.prompt(case)
    assert "A. cellulitis\nB. gout" in choice.prompt(case)


@pytest.mark.parametrize(
    ("said", "known", "precision", "recall"),
    [
        ("Denies fever. Takes metformin 2.5 mg.\n- Allergic to nuts.", True, 2 / 3, 2 / 3),  # 2.5 ends no sentence
        ("denies fever", True, 1.0, 1 / 3),
        ("Reports fever. Takes metformin 2.5 mg.", True, 1 / 2, 1 / 3),
        ("Denies fever. Denies fever. Denies cough.", True, 2 / 3, 1 / 3),
        ("Nothing of note.", True, 0.0, 0.0),
        # without a list of facts words in common stand in
        ("Patient takes metformin. Also smokes heavily.", False, 1 / 2, 1 / 3),
    ],
)
def test_facts_are_counted_exactly_where_they_are_known(
    said: str, known: bool, precision: float, recall: float
) -> None:
    facts = ["Denies fever", "Takes metformin 2.5 mg", "Allergic to nuts"]
    case = Case("c", "g", "dialogue", {"summary": ". ".join(facts) + "."}, {"facts": facts} if known else {})
    task = get_task("summarization", load_card("synthetic_dialogues"))
    scores = task.score(task.parse(said), case)
    assert (scores["factual_precision"], scores["factual_recall"]) == pytest.approx((precision, recall))
    assert task.score(task.parse(task.target(case)), case)["factual_f1"] == 1.0
