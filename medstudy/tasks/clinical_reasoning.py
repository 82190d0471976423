"""Clinical reasoning: the findings that matter, then the diagnosis; open-ended or with options."""

from __future__ import annotations

import random
from dataclasses import replace

from medstudy.data.cases import Case
from medstudy.tasks.base import ACCURACY, UNPARSED, Answer, Task, field_of, normalise


class ClinicalReasoning(Task):
    """Scored on the final diagnosis alone; the findings make the reasoning visible."""

    outcomes = open_outcomes = ("diagnosis",)
    metrics = (replace(ACCURACY[0], primary=True), ACCURACY[1], UNPARSED)

    def prompt(self, case: Case) -> str:
        options = "".join(f"\n{letter}. {text}" for letter, text in self._options(case).items())
        return f"{case.text}\n{options}\n\n{self.card.question}" if options else f"{case.text}\n\n{self.card.question}"

    def target(self, case: Case) -> str:
        findings = case.details.get("findings")
        return (f"Findings: {'; '.join(findings)}\n" if findings else "") + f"Diagnosis: {case.gold['diagnosis']}"

    def parse(self, text: str) -> Answer:
        diagnosis = field_of(text, "Diagnosis")
        return Answer("parsed", {"diagnosis": diagnosis}) if diagnosis else Answer("unparsed")

    def score(self, answer: Answer, case: Case) -> dict[str, float]:
        said = normalise(answer.value.get("diagnosis", ""))
        return {"correct": float(bool(said) and said in self._accepted(case))}

    def wrong_answers(self, case: Case, cases: list[Case], rng: random.Random) -> list[str]:
        """The other options where the source has some, else diagnoses of other cases."""
        names = list(case.details.get("options", {}).values()) or [c.gold["diagnosis"] for c in cases]
        accepted = self._accepted(case)
        wrong = sorted({name for name in names if normalise(name) not in accepted})
        answers = [replace(case, gold={"diagnosis": name}) for name in rng.sample(wrong, len(wrong))]
        return [self.target(answer) for answer in answers]

    def _options(self, case: Case) -> dict[str, str]:
        return case.details.get("options", {}) if self.card.show_options else {}

    def _accepted(self, case: Case) -> set[str]:
        """Gold, its listed synonyms and, where options were shown, its letter alone or with its text."""
        names = {normalise(n) for n in (case.gold["diagnosis"], *case.details.get("synonyms", []))}
        letters = {letter.casefold() for letter, text in self._options(case).items() if normalise(text) in names}
        return names | letters | {f"{letter}. {name}" for letter in letters for name in names}
