"""Clinical reasoning: the findings that matter, then the diagnosis; open-ended or with options."""

import random
import re
from dataclasses import replace

from medstudy.data.cases import Case
from medstudy.tasks.base import ACCURACY, UNPARSED, Answer, Task
from medstudy.tasks.reading import field_of, normalise, plain, said

_ASKED = re.compile(r"^\s*Diagnosis\s*:[ \t]*(?!.*\bFindings\s*:)(\S.*)$", re.IGNORECASE | re.MULTILINE)
_FIELDS = ("final diagnosis", "diagnosis", "final answer", "answer")
_PHRASE = re.compile(r"^(?:(?:it|this) is|(?:most )?likely|probably)\s+(?:an?\s)?")
_REASON = re.compile(r",?\s(?:because|since|as the|given)\s.*|\.\s(?=(?:\S+\s){3}).*|\s\((?!or\b)[^()]*\)$", re.DOTALL)
_OPTION = re.compile(r"(?:option\s)?\(?([a-z])(?:[).:]+|\s-|$)\s*(.*)")
#: A text of more words than this that names no field is no bare diagnosis.
LONGEST = 6


class ClinicalReasoning(Task):
    """Scored on the final diagnosis alone; the findings make the reasoning visible."""

    outcomes = open_outcomes = ("diagnosis",)
    metrics = (replace(ACCURACY[0], primary=True), ACCURACY[1], UNPARSED)

    def prompt(self, case: Case) -> str:
        options = "".join(f"\n{letter}. {text}" for letter, text in self._shown(case).items())
        return f"{case.text}\n{options}\n\n{self.card.question}" if options else f"{case.text}\n\n{self.card.question}"

    def target(self, case: Case) -> str:
        findings = case.details.get("findings")
        return (f"Findings: {'; '.join(findings)}\n" if findings else "") + f"Diagnosis: {case.gold['diagnosis']}"

    def parse(self, text: str) -> Answer:
        asked = {line.strip() for line in _ASKED.findall(said(text))}
        value = asked.pop() if len(asked) == 1 else field_of(text, _FIELDS, ("findings",))
        if value is None and not asked and len(plain(text).split()) <= LONGEST:
            value = plain(text)  # the name or the letter alone
        return self.understood(text, {"diagnosis": value}) if value else Answer("unparsed")

    def score(self, answer: Answer, case: Case) -> dict[str, float]:
        names = _right(case)
        letters = {letter.casefold() for letter, text in self._shown(case).items() if _name(text) in names}
        accepted = names | letters | {f"{letter}. {name}" for letter in letters for name in names}
        return {"correct": float(bool(accepted & self._readings(answer.value.get("diagnosis", ""))))}

    def wrong_answers(self, case: Case, cases: list[Case], rng: random.Random) -> list[str]:
        """The other options where the source has some, else diagnoses of other cases."""
        names = set(case.details.get("options", {}).values()) or {c.gold["diagnosis"] for c in cases}
        wrong = sorted(name for name in names if _name(name) not in _right(case))
        return [self.target(replace(case, gold={"diagnosis": name})) for name in rng.sample(wrong, len(wrong))]

    def _shown(self, case: Case) -> dict[str, str]:
        """The options in the prompt, by letter."""
        return case.details.get("options", {}) if self.card.show_options else {}

    def _readings(self, value: str) -> set[str]:
        """The answer as it stands, and without a phrase before it or a reason behind; ``(B) x`` is ``b. x``."""
        whole = _name(value)
        read = {whole, normalise(_REASON.sub("", _PHRASE.sub("", whole)))} - {""}
        options = [_OPTION.fullmatch(text) for text in read] if self.card.show_options else []
        return read | {normalise(f"{o[1]}. {o[2]}") for o in options if o}


def _name(text: str) -> str:
    return normalise(plain(text))


def _right(case: Case) -> set[str]:
    return {_name(name) for name in (case.gold["diagnosis"], *case.details.get("synonyms", []))}
