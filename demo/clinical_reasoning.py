"""Vignettes with misleading findings: which findings matter, and the diagnosis.

Four findings are present now, and one disease alone explains all four. Beside them stand findings of one
rival that do not count (two are long past, one is denied) and an everyday distraction: who counts
words is led to the rival.
"""

from __future__ import annotations

import itertools
import random

from demo import medicine as med
from demo.medicine import Disease
from demo.writing import Draft, Layout, course, listed, person, sentence, unlike, write_cases
from medstudy.data.cases import Case

_OPENINGS = (
    "{who} comes with {first} for {days}",
    "for {days} {who} has had {first}",
    "{who} is seen after {days} of {first}",
    "{first} for {days} are why {who} is in the clinic",
    "{who} was well until {days} ago, then {first} began",
)
_SECOND = (
    "{she} also describes {second}",
    "on asking there are {second} as well",
    "{she} now also has {second}",
    "there are {second} too",
)
_OLD = (
    "years ago {she} had {old}, long gone",
    "{she} had {old} last year, now gone",
    "{she} once had {old}, years ago",
    "{she} had {old} in the past but not now",
)
_ASIDE = ("{she} mentions {aside}", "{she} wonders about {aside}", "of note, {aside}", "{she} blames {aside}")
_ABSENT = ("{she} has no {absent}", "{she} denies {absent}", "no {absent} on asking", "{she} reports no {absent}")
_ORDERS = ((0, 1, 2, 3, 4), (0, 2, 3, 1, 4), (0, 3, 4, 1, 2), (0, 4, 3, 2, 1), (0, 2, 1, 4, 3))
_SHAPE = tuple(map(len, (_OPENINGS, _SECOND, _OLD, _ASIDE, _ABSENT, _ORDERS)))
_RIVALS, _DRAWS = 4, 8  # look-alikes to draw a rival from; draws of findings to choose from


def generate(n: int, seed: int) -> list[Case]:
    """Write ``n`` vignettes, all diseases equally often; details hold findings, synonyms and options A-D."""
    return write_cases("vignette", n, seed, _SHAPE, _draft)


def look_alikes(disease: Disease) -> list[Disease]:
    """Other diseases by the number of shared findings, most first (ties in the order of the list)."""
    others = [d for d in med.DISEASES if d is not disease]
    return sorted(others, key=lambda d: -len(set(d.findings) & set(disease.findings)))


def _draft(layout: Layout, turn: int, rng: random.Random) -> Draft:
    opening, second, old, aside, absent, order = layout
    disease = med.DISEASES[turn % len(med.DISEASES)]
    who, she = person(rng, disease.sex)
    kin = [d for d in look_alikes(disease) if not d.sex or she == "she"]
    rival = rng.choice([d for d in kin if len(unlike(d.findings, disease.findings)) >= 3][:_RIVALS])
    findings = _findings(disease, rival, kin, rng)
    *lures, denied = rng.sample(unlike(rival.findings, disease.findings), 3)
    slots = {
        "who": who,
        "she": she,
        "first": listed(findings[:2]),
        "second": listed(findings[2:]),
        "days": course(rng, disease.urgency),
        "old": listed(lures),
        "absent": denied,
        "aside": rng.choice(med.MISLEADING),
    }
    lines = (_OPENINGS[opening], _SECOND[second], _OLD[old], _ASIDE[aside], _ABSENT[absent])
    text = " ".join(sentence(lines[i].format(**slots)) for i in _ORDERS[order])
    options = [d.name for d in (disease, rival, *[d for d in kin if d is not rival][:2])]
    rng.shuffle(options)
    details = {
        "findings": findings,
        "synonyms": list(disease.synonyms),
        "options": dict(zip("ABCD", options, strict=True)),
    }
    return Draft(text, {"diagnosis": disease.name}, details)


def _findings(disease: Disease, rival: Disease, kin: list[Disease], rng: random.Random) -> list[str]:
    """Draw four findings that only the disease explains whole.

    Of several draws the one that shares most with the rival is taken: time and "no" have to be read.
    """
    fours = itertools.combinations(rng.sample(disease.findings, len(disease.findings)), 4)
    explained = [set(d.findings) for d in kin]
    own = [list(four) for four in fours if not any(known.issuperset(four) for known in explained)]
    draws = rng.sample(own, min(_DRAWS, len(own)))
    return max(draws, key=lambda four: len(set(four) & set(rival.findings)))
