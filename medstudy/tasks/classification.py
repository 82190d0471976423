"""Classification, from text or from numbers written as text: one label of a closed list."""

from __future__ import annotations

import random

from medstudy.data.cases import Case
from medstudy.tasks.base import ACCURACY, UNPARSED, Answer, Metric, Task
from medstudy.tasks.reading import field_of, labels_in, said


class Classification(Task):
    """The model answers with the label alone. The outcome has the name that the card gives it."""

    kind = "classification"
    metrics = (
        Metric("macro_f1", "f1", "", primary=True),
        *ACCURACY,
        UNPARSED,
        Metric("auroc", "auroc", "score_p_positive", optional=True),
        Metric("brier", "mean", "score_brier", optional=True),
    )

    @property
    def outcome(self) -> str:
        return next(iter(self.card.labels))

    @property
    def labels(self) -> list[str]:
        return self.card.labels[self.outcome]

    def prompt(self, case: Case) -> str:
        return f"{case.text}\n\n{self.card.question}\nAnswer with one of: {', '.join(self.labels)}."

    def target(self, case: Case) -> str:
        return case.gold[self.outcome]

    def parse(self, text: str) -> Answer:
        if not said(text):
            return Answer("unparsed")
        field = field_of(text, ("final answer", "answer", "label", self.outcome.replace("_", " ")))
        found = labels_in(field or "", self.labels) or labels_in(text, self.labels)
        if len(found) != 1:
            return Answer("unparsed" if found else "out_of_range")
        return self.understood(text, {self.outcome: found[0]})

    def score(self, answer: Answer, case: Case) -> dict[str, float]:
        return {"correct": float(answer.value.get(self.outcome) == case.gold[self.outcome])}

    def wrong_answers(self, case: Case, cases: list[Case], rng: random.Random) -> list[str]:
        others = [label for label in self.labels if label != case.gold[self.outcome]]
        return rng.sample(others, len(others))
