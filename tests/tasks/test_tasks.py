"""Prompt, target, parse and score of every task, on cases written by hand."""

from __future__ import annotations

import random

import pytest
from made_up import asked

from medstudy.data.card import DataCard, load_card
from medstudy.data.cases import Case, DataError
from medstudy.data.load import load_cases
from medstudy.data.splits import split_cases
from medstudy.evaluation.predictions import predictions_table
from medstudy.tasks import TASK_TYPES, get_task
from medstudy.tasks.summarization import factual_overlap, sentences

CARDS = {
    "text_classification": "synthetic_uti",
    "numeric_classification": "breast_cancer",
    "clinical_reasoning": "synthetic_vignettes",
    "summarization": "synthetic_dialogues",
    "clinical_triage": "synthetic_messages",
}


@pytest.mark.parametrize("name", list(TASK_TYPES))
@pytest.mark.parametrize("text", ["", "   ", "\n\n"])
def test_an_empty_answer_is_unparsed_and_scores_zero(name: str, text: str) -> None:
    card = load_card(CARDS[name])
    task = get_task(name, card)
    case = load_cases(card).cases[0]
    answer = task.parse(text)
    assert answer.status == "unparsed"
    assert set(task.score(answer, case).values()) == {0.0}


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
    assert [m.source for m in task.measured(card.labels) if m.kind == "f1"] == ["diagnosis"]
    table = predictions_table(task, [case], {"sft": ["Answer: " + case.gold["diagnosis"]]})
    assert table["score_correct"].tolist() == [1.0]
    # no outcome in free words: it is what the splits are drawn by
    splits = split_cases(load_cases(card).cases, asked(100, 50, 100, 0, 0))
    assert abs(sum(c.gold["diagnosis"] == "yes" for c in splits.train) - 50) <= 2


def vignette(**details: object) -> Case:
    """A case of gout."""
    return Case("c", "g", "a red big toe", {"diagnosis": "gout"}, details)


def test_reasoning_shows_options_only_where_the_card_says_so() -> None:
    case = vignette(options={"A": "cellulitis", "B": "gout"})
    open_ended = get_task("clinical_reasoning", load_card("synthetic_vignettes"))
    choice = get_task("clinical_reasoning", load_card("medqa"))
    assert "cellulitis" not in open_ended.prompt(case)
    assert "A. cellulitis\nB. gout" in choice.prompt(case)


def note(facts: list[str] | None) -> Case:
    """A note of three facts."""
    text = "Denies fever. Takes metformin 2.5 mg. Allergic to nuts."
    return Case("c", "g", "dialogue", {"summary": text}, {"facts": facts} if facts else {})


FACTS = ["Denies fever", "Takes metformin 2.5 mg", "Allergic to nuts"]


@pytest.mark.parametrize(
    ("said", "precision", "recall"),
    [
        ("Denies fever. Takes metformin 2.5 mg. Allergic to nuts.", 1.0, 1.0),
        ("denies fever", 1.0, 1 / 3),
        ("Reports fever. Takes metformin 2.5 mg.", 1 / 2, 1 / 3),
        ("Denies fever. Denies fever. Denies cough.", 2 / 3, 1 / 3),
        ("Nothing of note.", 0.0, 0.0),
    ],
)
def test_facts_are_counted_exactly_where_they_are_known(said: str, precision: float, recall: float) -> None:
    assert factual_overlap(said, note(FACTS)) == pytest.approx((precision, recall))


def test_without_a_list_of_facts_words_in_common_stand_in() -> None:
    precision, recall = factual_overlap("Patient takes metformin. Also smokes heavily.", note(None))
    assert precision == pytest.approx(1 / 2)
    assert recall == pytest.approx(1 / 3)


def test_a_decimal_point_ends_no_sentence() -> None:
    assert sentences("Takes metformin 2.5 mg. Denies fever.\n- rash") == [
        "takes metformin 2.5 mg",
        "denies fever",
        "- rash",
    ]
