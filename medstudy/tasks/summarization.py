"""Summarization: a doctor-patient dialogue becomes a note section, scored fact by fact."""

import random
import re
from functools import cache
from typing import Any

from medstudy.data.cases import Case
from medstudy.tasks.base import UNPARSED, Answer, Metric, Task
from medstudy.tasks.reading import normalise, said

_FUNCTION_WORDS = (
    "a an and are as at be been by for from had has have he her him his in is it its no not of on or she that the "
    "their they this to was were who with"
)


class Summarization(Task):
    """Free text: every non-empty output is an answer."""

    outcomes = open_outcomes = ("summary",)
    metrics = (
        Metric("factual_f1", "mean", "score_factual_f1", primary=True),
        Metric("factual_precision", "mean", "score_factual_precision", optional=True),
        Metric("factual_recall", "mean", "score_factual_recall", optional=True),
        *(Metric(name, "mean", f"score_{name}") for name in ("rouge1", "rouge2", "rougeL")),
        Metric("length", "mean", "score_length", bounded=False),
        UNPARSED,
    )

    def prompt(self, case: Case) -> str:
        return f"{case.text}\n\n{self.card.question}"

    def target(self, case: Case) -> str:
        return case.gold["summary"]

    def parse(self, text: str) -> Answer:
        note = said(text)
        return Answer("parsed", {"summary": note}, exact=note == text.strip()) if note else Answer("unparsed")

    def score(self, answer: Answer, case: Case) -> dict[str, float]:
        note = answer.value.get("summary", "")
        precision, recall = factual_overlap(note, case)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        scores = {"factual_f1": f1, "factual_precision": precision, "factual_recall": recall}
        scores |= {name: rouge.fmeasure for name, rouge in _rouge().score(case.gold["summary"], note).items()}
        return scores | {"length": float(len(note.split())), "correct": float(f1 == 1.0)}

    def wrong_answers(self, case: Case, cases: list[Case], rng: random.Random) -> list[str]:
        """The gold note with one sentence exchanged for another case's, and with it left out."""
        gold = case.gold["summary"].strip()
        out = rng.choice(_split(gold))
        other = rng.choice(_split(rng.choice(cases).gold["summary"].strip()))
        # in place, so that line breaks stay as they are
        texts = [gold.replace(out, other, 1), gold.replace(out, "", 1).strip()]
        return [text for text in texts if text and normalise(text) != normalise(gold)]


def factual_overlap(note: str, case: Case) -> tuple[float, float]:
    """Factual precision and recall: stated facts that are true, true facts that are stated.

    Known facts (synthetic cases) are compared whole. Else sentences of the gold note stand in, and one is stated when
    half of its content words are: that sees no negation or number.
    """
    stated, gold = _sentences(note), case.gold["summary"]
    if not stated:
        return 0.0, 0.0
    if "facts" not in case.details:
        return _share_found(stated, gold), _share_found(_sentences(gold), note)
    true = set(map(normalise, case.details["facts"]))
    # a fact repeated is stated once, but each repetition still counts as a statement
    return sum(sentence in true for sentence in stated) / len(stated), len(true & set(stated)) / len(true)


def _sentences(text: str) -> list[str]:
    return [sentence for part in _split(text) if (sentence := normalise(part))]


def _split(text: str) -> list[str]:
    """Sentences or lines of a note; a full stop between digits does not end one."""
    return re.split(r"(?<=[.!?;])\s+|\n+", text)


def _share_found(facts: list[str], text: str) -> float:
    held = _content(text)
    wanted = [words for fact in facts if (words := _content(fact))]
    return sum(len(words & held) >= len(words) / 2 for words in wanted) / max(1, len(wanted))


def _content(text: str) -> set[str]:
    return set(re.findall(r"[\w.]*\w", text.casefold())) - set(_FUNCTION_WORDS.split())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
