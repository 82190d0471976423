"""What a clinician reads in an answer: texts and their right readings."""

from __future__ import annotations

import random
import time

import pytest

from medstudy.data.card import CARDS, DataCard, load_card
from medstudy.data.cases import Case
from medstudy.data.load import load_cases
from medstudy.tasks import get_task
from medstudy.tasks.base import Task
from medstudy.tasks.reading import labels_in


def classify(*labels: str) -> Task:
    """A classification task with these labels, whose outcome is called ``finding``."""
    values = load_card("synthetic_uti").model_dump() | {"labels": {"finding": list(labels)}, "positive": None}
    values["columns"]["gold"] = {"finding": {"column": "label"}}
    return get_task("text_classification", DataCard.model_validate(values))


MASS, YES_NO, LEVELS = ("benign", "malignant"), ("no", "yes"), ("1", "2", "10")
URGENCY = ("non-urgent", "less urgent", "urgent")
SMOKING = ("current smoker", "past smoker", "smoker", "non-smoker", "unknown")
NEGATED = ("infection", "no infection")
ODD = ("class no. 1 (other, n.o.s.)", "class no. 10 (other, n.o.s.)", "<5 mm")
ONE_LABEL = [
    # the asked-for form
    (MASS, "malignant", "malignant"), (MASS, " Malignant.\n", "malignant"),
    (YES_NO, "no\nbecause there is no dysuria", "no"), (ODD, "class no. 10 (other, n.o.s.)", ODD[1]),
    (ODD, "<5 mm", "<5 mm"),
    # a field, a sentence, markdown, quotes, brackets, signs
    (MASS, "Answer: malignant", "malignant"), (MASS, "The mass is malignant.", "malignant"),
    (MASS, "**Answer:** malignant", "malignant"), (MASS, "- Finding: malignant", "malignant"),
    (MASS, "**malignant**", "malignant"), (MASS, "# Answer\n> `malignant`", "malignant"),
    (MASS, "| Finding | malignant |", "malignant"), (MASS, "ｍａｌｉｇｎａｎｔ\u200b", "malignant"),
    (URGENCY, "non\u2011urgent", "non-urgent"), (URGENCY, "Non urgent.", "non-urgent"),
    (YES_NO, "The answer is yes.", "yes"), (LEVELS, "Level 2", "2"),
    # a reason before or behind
    (MASS, "malignant - the borders are irregular", "malignant"),
    (MASS, "Malignant, because benign masses are smooth.", "malignant"),
    (MASS, "Malignant (benign masses are smooth)", "malignant"),
    (MASS, "Malignant. Benign masses would be smooth.", "malignant"),
    (MASS, "Benign masses are smooth.\n\nFinal answer: malignant", "malignant"),
    (YES_NO, "Yes. No fever was noted.", "yes"), (YES_NO, "No, there is no infection.", "no"),
    # thinking
    (MASS, "<think>Could be benign. Benign?</think>\nmalignant", "malignant"),
    (MASS, "Benign or not? </think> malignant", "malignant"),
    (MASS, "<think>\n\n</think>\n\nThe mass is malignant.", "malignant"), (MASS, "<think>It is malignant", None),
    (MASS, "[THINK]Benign?[/THINK]malignant", "malignant"), (MASS, "[THINK]It is malignant", None),
    (MASS, "<seed:think>Benign?</seed:think>malignant", "malignant"), (MASS, "<seed:think>It is malignant", None),
    # labels within labels and within other words
    (URGENCY, "This is non-urgent.", "non-urgent"), (URGENCY, "This is less urgent.", "less urgent"),
    (URGENCY, "This case is urgent.", "urgent"), (URGENCY, "Treat urgently", None),
    (SMOKING, "He is a past smoker.", "past smoker"), (SMOKING, "The patient is a non-smoker.", "non-smoker"),
    (SMOKING, "nonsmoker", "non-smoker"), (SMOKING, "never smoker", None), (LEVELS, "10", "10"),
    (LEVELS, "1.5", None), (LEVELS, "about 1 of 10 patients", None), (YES_NO, "nothing to report", None),
    (YES_NO, "There is no fever.", None),
    # what is not so
    (MASS, "not malignant", None), (MASS, "The mass is not malignant.", None),
    (MASS, "The mass isn't a malignant one", None), (MASS, "There is no evidence of a malignant mass", None),
    (MASS, "benign, not malignant", "benign"), (MASS, "Benign rather than malignant", "benign"),
    (MASS, "More likely malignant than benign.", "malignant"),
    (MASS, "No doubt malignant.", "malignant"), (MASS, "There is no fever and the mass is malignant.", "malignant"),
    (MASS, "The mass is benign. It is not malignant.", "benign"),
    (MASS, "benign: false\nmalignant: true", "malignant"), (MASS, '{"finding": "malignant"}', "malignant"),
    (MASS, "Neither benign nor malignant.", None), (MASS, "Malignant is unlikely.", None),
    (MASS, "Malignant: no", None), (MASS, "Malignant?", None), (MASS, "Is it malignant? Hard to say.", None),
    (NEGATED, "no infection", "no infection"), (NEGATED, "There is no infection.", "no infection"),
    # two answers
    (MASS, "benign or malignant", None), (MASS, "benign/malignant", None), (MASS, "Malignant, or benign", None),
    (MASS, "Malignant\nBenign", None), (MASS, "Malignant. Actually it is benign.", None),
    (MASS, "The mass is malignant. Benign.", None), (MASS, "Answer: malignant\nAnswer: benign", None),
    (YES_NO, "yes and no", None), (YES_NO, "Yes, no.", None), (YES_NO, "perhaps", None),
    (MASS, "Answer with one of: benign, malignant.", None),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "text", "right"), ONE_LABEL, ids=[repr(text) for _, text, _ in ONE_LABEL])
def test_one_label(labels: tuple[str, ...], text: str, right: str | None) -> None:
    answer = classify(*labels).parse(text)
    assert answer.value.get("finding") == right
    assert (answer.status == "parsed") == (right is not None)
    assert answer.exact or text not in labels


TRIAGE = [
    ("Provider: nurse\nUrgency: soon", ("nurse", "soon"), True),
    ("urgency: SOON\nprovider: Nurse.", ("nurse", "soon"), True),
    ("**Provider:** nurse\n**Urgency:** soon", ("nurse", "soon"), False),
    ("Provider: nurse, Urgency: soon", ("nurse", "soon"), False),
    ("| Provider | nurse |\n| Urgency | soon |", ("nurse", "soon"), False),
    ("Provider: nurse (not a specialist)\nUrgency: soon, as the pain is new", ("nurse", "soon"), False),
    ("The provider is the nurse and the urgency is soon.", ("nurse", "soon"), False),
    ("<think>Provider: emergency</think>Provider: nurse\nUrgency: soon", ("nurse", "soon"), False),
    ("This patient should see a nurse soon.", ("nurse", "soon"), False), ("nurse, soon", ("nurse", "soon"), False),
    ("Provider: emergency\nUrgency: immediate", ("emergency", "immediate"), True), ("Provider: nurse", None, True),
    ("Provider: nurse\nUrgency: whenever", None, True), ("Provider: nurse or pharmacist\nUrgency: soon", None, True),
    ("Provider: nurse\nUrgency: soon\nProvider: specialist", None, True), ("Provider:\nUrgency: soon", None, True),
    ("Not a nurse, soon.", None, True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "right", "exact"), TRIAGE, ids=[repr(text) for text, *_ in TRIAGE])
def test_two_outcomes(text: str, right: tuple[str, str] | None, exact: bool) -> None:
    answer = get_task("clinical_triage", load_card("synthetic_messages")).parse(text)
    assert answer.value == (dict(zip(("provider", "urgency"), right, strict=True)) if right else {})
    assert answer.exact == exact


GOUT = Case(
    "c", "g", "a red toe", {"diagnosis": "gout"}, {"synonyms": ["podagra"], "options": {"A": "flu", "B": "gout"}}
)
REASONING = [
    ("Findings: toe\nDiagnosis: Gout.", 1.0, True), ("diagnosis: podagra", 1.0, True),
    ("**Diagnosis:** gout", 1.0, False), ("- Diagnosis: gout", 1.0, False),
    ("Findings: toe. Diagnosis: gout", 1.0, False), ("Diagnosis: gout, Findings: red toe", 1.0, False),
    ("Diagnosis: gout, because the toe is red", 1.0, True), ("Diagnosis: gout. The toe is red and hot.", 1.0, True),
    ("Final answer: gout", 1.0, False), ("It is gout", 1.0, False),
    ("<think>flu?</think>\nDiagnosis: gout", 1.0, True), ("Diagnosis: flu", 0.0, True),
    ("Diagnosis: not gout", 0.0, True), ("Diagnosis: gout or flu", 0.0, True),
    ("Diagnosis: gout (or flu)", 0.0, True), ("Diagnosis: gout\nDiagnosis: flu", 0.0, True),
    ("The toe is red and hot, which is often seen in gout", 0.0, True),
]  # fmt: skip
LETTERS = [
    ("Diagnosis: B", 1.0), ("Diagnosis: (B)", 1.0), ("B)", 1.0), ("B.", 1.0), ("B: gout", 1.0), ("(B) gout", 1.0),
    ("**B. gout**", 1.0), ("The answer is B", 1.0), ("Answer: B) gout", 1.0), ("Diagnosis: B. gout", 1.0),
    ("option B", 1.0), ("Diagnosis: A", 0.0), ("(A) gout", 0.0), ("B) flu", 0.0), ("A or B", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "right", "exact"), REASONING, ids=[repr(text) for text, *_ in REASONING])
def test_a_diagnosis(text: str, right: float, exact: bool) -> None:
    task = get_task("clinical_reasoning", load_card("synthetic_vignettes"))
    assert task.score(task.parse(text), GOUT)["correct"] == right
    assert task.parse(text).exact == exact


@pytest.mark.parametrize(("text", "right"), LETTERS)
def test_a_letter_counts_where_options_are_shown(text: str, right: float) -> None:
    choice, open_ended = (get_task("clinical_reasoning", load_card(name)) for name in ("medqa", "synthetic_vignettes"))
    assert choice.score(choice.parse(text), GOUT)["correct"] == right
    if "gout" not in text:
        assert open_ended.score(open_ended.parse(text), GOUT)["correct"] == 0.0


def test_a_note_is_what_stands_behind_the_thinking() -> None:
    task = get_task("summarization", load_card("synthetic_dialogues"))
    for text, note, exact in [(" Denies fever. ", "Denies fever.", True), ("<think>a</think>\nHi.", "Hi.", False)]:
        assert (task.parse(text).value, task.parse(text).exact) == ({"summary": note}, exact)
    assert task.parse("<think>never closed").status == "unparsed"


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_gold_answer_reads_as_gold_in_the_exact_form(path) -> None:
    card = load_card(path.stem)
    task = get_task(card.task, card)
    made = [Case("c", "g", "t", dict.fromkeys(card.open_outcomes, "Eosinophilic \"granuloma\" (E. coli), type 2")
                 | {o: labels[i % len(labels)] for o, labels in card.labels.items()})
            for i in range(max(map(len, card.labels.values()), default=1))]  # fmt: skip
    there = card.synthetic or card.name == "breast_cancer"
    for case in [*made, *(load_cases(card).cases[:300] if there else [])]:
        answer = task.parse(task.target(case))
        assert (answer.status, dict(answer.value), answer.exact) == ("parsed", dict(case.gold), True)
        assert task.score(answer, case)["correct"] == 1.0


@pytest.mark.parametrize("name", sorted(card.stem for card in CARDS.glob("syn*")))
def test_no_text_makes_a_parser_raise_or_hang(name: str) -> None:
    card, rng = load_card(name), random.Random(0)
    task = get_task(card.task, card)
    signs = "ab1 \n\t:.,;|*_#>-(){}[]<>/\\\"'‘–\u200b\ud800\0é漢" + "yes no Diagnosis: Provider: <think> </think> not "
    texts = ["".join(rng.choice(signs) for _ in range(rng.randrange(60))) for _ in range(500)]
    texts += [part * 4000 for part in (" ", "no ", "not ", "(", "a.b", "Answer: ", "Diagnosis: |", "**", "<think>")]
    started = time.monotonic()
    assert {task.parse(text).status for text in texts} <= {"parsed", "unparsed", "out_of_range"}
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("labels", [["HER2-", "HER2+"], ["-1", "1"], ["MRSA -", "MRSA"], ["-", "positive"]])
def test_a_sign_at_the_edge_of_a_label_is_a_part_of_it(labels) -> None:
    """`HER2+` was read as `HER2-`, and 1 as -1."""
    assert [labels_in(label, labels) for label in labels] == [[label] for label in labels]


def test_a_card_whose_labels_would_be_read_as_others_is_refused() -> None:
    card = load_card("synthetic_uti").model_dump(exclude_none=True)
    with pytest.raises(ValueError, match="would be read as .*; give labels in words"):
        DataCard.model_validate(card | {"labels": {"label": ["m2", "m\u00b2"]}, "positive": "m2"})
