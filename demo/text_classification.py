"""Clinician passages: does the patient meet the criteria of a urinary tract infection?

Rule: yes if and only if a urinary symptom is present now AND the urine of now is positive. Everything
else in a passage (an earlier episode, a catheter, a stone, a denied fever) is true and beside the point.
An earlier episode more often than not says the opposite of the present one, so that no word gives the label.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from demo import medicine as med
from demo.writing import Draft, Layout, listed, person, sentence, write_cases
from medstudy.data.cases import Case

_OPENINGS = (
    "{who} seen in clinic",
    "review of {who}",
    "ward round, {who}",
    "telephone contact with {who}",
    "{who} referred by the nurse",
    "home visit to {who}",
)
# Each wording has a positive and a negative side; all are said of today and of earlier times alike.
_SYMPTOMS = (
    ("{she} had {s}", "{she} had no {s}"),
    ("{she} reported {s}", "{she} denied {s}"),
    ("there was {s}", "there was no {s}"),
    ("{she} was troubled by {s}", "{she} was free of {s}"),
    ("{she} complained of {s}", "{she} did not complain of {s}"),
    ("{she} noticed {s}", "{she} noticed no {s}"),
)
_URINE = (
    ("the dipstick was positive for nitrites", "the dipstick was negative for nitrites"),
    ("the urine culture grew {germ}", "the urine culture grew nothing"),
    ("the urine showed {germ}", "the urine showed mixed growth, a contamination"),
    ("the midstream urine had heavy growth", "the midstream urine had no growth"),
    ("the urine culture was positive", "the urine culture was sterile"),
    ("{germ} was found in the urine", "no {germ} was found in the urine"),
)
_NOW = ("today", "this morning", "at this visit", "at review")
_BEFORE = ("last year", "in spring", "months ago", "at the last visit")
_CONTEXTS = (
    "{she} has a urinary catheter",
    "a kidney stone was seen on the scan",
    "{she} has flank pain from a known kidney stone",
    "blood in urine for years, bladder scan normal",
    "{she} has vaginal itching and discharge",
    "{she} awaits a hip operation",
    "{she} takes {drug}",
    "{she} has diabetes",
)
_GERMS = ("E. coli", "Klebsiella", "Proteus", "enterococcus")
_OTHERS = ("fever", "chills", "nausea", "headache", "cough", "low mood")
_ORDERS = ((0, 1, 2, 3, 4), (2, 0, 3, 1, 4), (3, 1, 2, 4, 0), (0, 2, 4, 1, 3), (2, 3, 0, 4, 1))
_SHAPE = tuple(map(len, (_OPENINGS, _SYMPTOMS, _URINE, _NOW, _BEFORE, _CONTEXTS, _ORDERS)))
# (symptom now, urine positive now): half the turns meet both criteria, the rest miss one or two.
_STATES = ((True, True), (True, False), (True, True), (False, True), (True, True), (False, False))
_HAS_PAST, _OPPOSITE = 0.5, 0.6  # share of passages with an earlier episode; of those that say the opposite


def generate(n: int, seed: int) -> list[Case]:
    """Write ``n`` passages with gold ``label`` yes or no (half each)."""
    return write_cases("uti", n, seed, _SHAPE, _draft)


def _draft(layout: Layout, turn: int, rng: random.Random) -> Draft:
    opening, symptom, urine, now, before, context, order = layout
    ill, positive = _STATES[turn % len(_STATES)]
    who, she = person(rng, "woman" if "vaginal" in _CONTEXTS[context] else "")
    words = {"who": who, "she": she, "germ": rng.choice(_GERMS), "drug": rng.choice(tuple(med.DRUGS))}
    today, earlier = _NOW[now], _BEFORE[before]
    lines = [
        f"{today} {_say(_SYMPTOMS[symptom], ill, med.BLADDER_SYMPTOMS, rng)}",
        f"{today} {_say(_URINE[urine], positive, (), rng)}",
        _CONTEXTS[context],
        f"{today} {_say(rng.choice(_SYMPTOMS), rng.random() < 0.5, _OTHERS, rng)}",
    ]
    if rng.random() < _HAS_PAST:
        opposite = rng.random() < _OPPOSITE
        symptoms = _say(rng.choice(_SYMPTOMS), ill != opposite, med.BLADDER_SYMPTOMS, rng)
        lines.append(f"{earlier} {symptoms} and {_say(rng.choice(_URINE), positive != opposite, (), rng)}")
    ordered = [_OPENINGS[opening], *(lines[i] for i in _ORDERS[order] if i < len(lines))]
    text = " ".join(sentence(line.format(**words)) for line in ordered)
    return Draft(text, {"label": "yes" if ill and positive else "no"})


def _say(wording: tuple[str, str], positive: bool, findings: Sequence[str], rng: random.Random) -> str:
    """Take one side of a wording; "and" joins findings that are there, "or" those that are not."""
    named = listed(rng.sample(findings, 2), "and" if positive else "or") if findings else ""
    return wording[0 if positive else 1].replace("{s}", named)
