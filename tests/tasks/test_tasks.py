"""Prompt, target, parse and score of every task, on cases written by hand."""

from __future__ import annotations

import pytest

from medstudy.data.card import load_card
from medstudy.data.cases import Case, DataError
from medstudy.data.load import load_cases
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
def test_the_gold_answer_of_every_case_parses_and_scores_full_marks(name: str) -> None:
    card = load_card(CARDS[name])
    task = get_task(name, card)
    for case in load_cases(card).cases[:200]:
        answer = task.parse(task.target(case))
        assert answer.status == "parsed"
        assert task.score(answer, case)["correct"] == 1.0
        if name in ("clinical_reasoning", "summarization"):  # the others list the labels in the prompt
            assert task.target(case) not in task.prompt(case)


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


@pytest.mark.parametrize(
    ("text", "status", "label"),
    [
        ("yes", "parsed", "yes"),
        (" Yes. ", "parsed", "yes"),
        ("no\nbecause there is no dysuria", "parsed", "no"),
        ("perhaps", "out_of_range", None),
        ("yes and no", "out_of_range", None),
    ],
)
def test_classification_reads_the_label_alone(text: str, status: str, label: str | None) -> None:
    answer = get_task("text_classification", load_card("synthetic_uti")).parse(text)
    assert (answer.status, answer.value.get("label")) == (status, label)


def vignette(**details: object) -> Case:
    """A case of gout."""
    return Case("c", "g", "a red big toe", {"diagnosis": "gout"}, details)


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("Findings: toe\nDiagnosis: Gout.", 1.0),
        ("diagnosis: podagra", 1.0),
        ("Diagnosis: cellulitis", 0.0),
        ("It is gout", 0.0),
        ("Diagnosis: gout or cellulitis", 0.0),
    ],
)
def test_reasoning_accepts_gold_and_synonyms_on_the_diagnosis_line(text: str, correct: float) -> None:
    task = get_task("clinical_reasoning", load_card("synthetic_vignettes"))
    case = vignette(synonyms=["podagra"])
    assert task.score(task.parse(text), case)["correct"] == correct


def test_reasoning_shows_options_only_where_the_card_says_so() -> None:
    case = vignette(options={"A": "cellulitis", "B": "gout"})
    open_ended = get_task("clinical_reasoning", load_card("synthetic_vignettes"))
    choice = get_task("clinical_reasoning", load_card("medqa"))
    assert "cellulitis" not in open_ended.prompt(case)
    assert "A. cellulitis\nB. gout" in choice.prompt(case)
    for text, correct in [("B", 1.0), ("B. gout", 1.0), ("A", 0.0), ("A. gout", 0.0)]:
        assert choice.score(choice.parse(f"Diagnosis: {text}"), case)["correct"] == correct
    assert open_ended.score(open_ended.parse("Diagnosis: B"), case)["correct"] == 0.0


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


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Provider: nurse\nUrgency: soon", "parsed"),
        ("urgency: SOON\nprovider: Nurse.", "parsed"),
        ("Provider: nurse", "unparsed"),
        ("Provider: nurse\nUrgency: whenever", "out_of_range"),
    ],
)
def test_triage_needs_both_outcomes(text: str, status: str) -> None:
    task = get_task("clinical_triage", load_card("synthetic_messages"))
    case = Case("c", "g", "a message", {"provider": "nurse", "urgency": "soon"})
    answer = task.parse(text)
    assert answer.status == status
    assert task.score(answer, case)["correct"] == float(status == "parsed")
