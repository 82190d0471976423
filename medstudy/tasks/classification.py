"""Classification, from text or from numbers written as text: one label of a closed list."""

from __future__ import annotations

import random

from medstudy.data.cases import Case
from medstudy.tasks.base import ACCURACY, UNPARSED, Answer, Metric, Task, choose


class Classification(Task):
    """The model answers with the label alone."""

    outcomes = ("label",)
    metrics = (
        Metric("macro_f1", "f1", "label", primary=True),
        *ACCURACY,
        UNPARSED,
        Metric("auroc", "auroc", "score_p_positive", optional=True),
        Metric("brier", "mean", "score_brier", optional=True),
    )

    @property
    def labels(self) -> list[str]:
        return self.card.labels["label"]

    def prompt(self, case: Case) -> str:
        return f"{case.text}\n\n{self.card.question}\nAnswer with one of: {', '.join(self.labels)}."

    def target(self, case: Case) -> str:
        return case.gold["label"]

    def parse(self, text: str) -> Answer:
        if not text.strip():
            return Answer("unparsed")
        label = choose(text.strip().splitlines()[0], self.labels)
        return Answer("parsed", {"label": label}) if label else Answer("out_of_range")

    def score(self, answer: Answer, case: Case) -> dict[str, float]:
        return {"correct": float(answer.value.get("label") == case.gold["label"])}

    def wrong_answers(self, case: Case, cases: list[Case], rng: random.Random) -> list[str]:
        others = [label for label in self.labels if label != case.gold["label"]]
        return rng.sample(others, len(others))
