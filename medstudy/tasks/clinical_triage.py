"""Clinical triage: who should see the patient, and how soon. Two outcomes."""

from __future__ import annotations

import random
from dataclasses import replace

from medstudy.data.cases import Case
from medstudy.tasks.base import UNPARSED, Answer, Metric, Task
from medstudy.tasks.reading import field_of, labels_in, said


class ClinicalTriage(Task):
    """The model answers on two lines, ``Provider: …`` and ``Urgency: …``."""

    outcomes = ("provider", "urgency")
    metrics = (
        Metric("provider_macro_f1", "f1", "provider", primary=True),
        Metric("urgency_macro_f1", "f1", "urgency", primary=True),
        Metric("under_triage", "share", "under_triage"),
        Metric("over_triage", "share", "over_triage"),
        UNPARSED,
    )

    def prompt(self, case: Case) -> str:
        allowed = "\n".join(
            f"{name.capitalize()}: one of {', '.join(self.card.labels[name])}" for name in self.outcomes
        )
        return f"{case.text}\n\n{self.card.question}\n{allowed}"

    def target(self, case: Case) -> str:
        return "\n".join(f"{name.capitalize()}: {case.gold[name]}" for name in self.outcomes)

    def parse(self, text: str) -> Answer:
        if not said(text):
            return Answer("unparsed")
        fields = {name: field_of(text, name, self.outcomes) for name in self.outcomes}
        # without a line of its own the whole text is read: "see a nurse soon"
        found = {name: labels_in(value or text, self.card.labels[name]) for name, value in fields.items()}
        if all(len(labels) == 1 for labels in found.values()):
            return self.understood(text, {name: labels[0] for name, labels in found.items()})
        return Answer("out_of_range" if all(fields.values()) and not all(found.values()) else "unparsed")

    def score(self, answer: Answer, case: Case) -> dict[str, float]:
        right = {name: float(answer.value.get(name) == case.gold[name]) for name in self.outcomes}
        return right | {"correct": float(all(right.values()))}

    def wrong_answers(self, case: Case, cases: list[Case], rng: random.Random) -> list[str]:
        """One outcome wrong, the other right."""
        wrong = [
            {**case.gold, name: label}
            for name in self.outcomes
            for label in self.card.labels[name]
            if label != case.gold[name]
        ]
        return [self.target(replace(case, gold=gold)) for gold in rng.sample(wrong, len(wrong))]
