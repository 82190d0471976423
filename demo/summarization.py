"""Doctor-patient dialogues and the note that holds their facts, known exactly.

A dialogue has small talk, patient's words, denials and corrections; the note is one short sentence a
fact, in the order in which the facts were said.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from demo import medicine as med
from demo.writing import Draft, Layout, asked, bare, capital, course, unlike, write_cases
from medstudy.data.cases import Case

Turn = tuple[str, str]  # what doctor and patient say, the fact for the note ("" for small talk)

_GREETINGS = (
    ("Good morning, please sit down.", "Thank you."),
    ("Hello, how was the journey?", "The bus was late."),
    ("Come in, cold today.", "Very cold, yes."),
    ("Good to see you again.", "You too, doctor."),
    ("Sorry for the wait.", "No problem at all."),
    ("Hello, how is the family?", "All fine, thank you."),
)
_MAIN = (
    ("What brings you here?", "I have {lay}. It began {days} ago."),
    ("What is the matter?", "For {days} now I have had {lay}."),
    ("How can I help?", "It is {lay}, {days} now."),
    ("Tell me what happened.", "{days} ago I got {lay}, and it is still there."),
    ("What is troubling you?", "I have had {lay} for {wrong}, no, sorry, {days}."),
)
_ASKS = ("Any {bare}?", "Do you have {lay}?", "Have you noticed {lay}?", "And {lay}?")
_YES = ("Yes.", "Yes, that too.", "Yes, a bit.", "Yes, quite a lot.")
_NO = ("No, none.", "No, not at all.", "Not really, no.", "I had that years ago, not now.")
_DRUG_ASKS = ("Which tablets do you take?", "Any medicines?", "What do you take every day?")
_SMALL = (
    ("", ""),
    ("Lovely weather outside.", "Yes, good for the garden."),
    ("Is the new job going well?", "Busy, but fine."),
    ("Did you watch the game?", "I did, we lost."),
    ("How is the dog?", "Getting old, like me."),
)
_CLOSINGS = ("Thank you.", "We will do some tests.", "Let us have a look.")
# how often a medicine is taken; the others once daily
_OFTEN = {
    "metformin": ("once daily", "twice daily"),
    "omeprazole": ("once daily", "twice daily"),
    "atorvastatin": ("once daily", "at night"),
    "sertraline": ("once daily", "at night"),
    "apixaban": ("twice daily",),
    "ibuprofen": ("three times daily", "as needed"),
    "paracetamol": ("three times daily", "as needed"),
}
# what nobody would say of himself, or be asked, in the words of `medicine`
_UNSAID = ("vomiting", "urinary frequency", "cold intolerance", "heat intolerance", "visual disturbance", "warm skin")
_SAID = tuple(f for f in med.FINDINGS if f not in _UNSAID)
_SHAPE = (len(_GREETINGS), len(_MAIN), len(_ASKS), len(_YES), len(_NO), len(_DRUG_ASKS), len(_SMALL), len(_CLOSINGS), 3)


def generate(n: int, seed: int) -> list[Case]:
    """Write ``n`` dialogues with gold ``summary``; ``details["facts"]`` holds its sentences without stops."""
    return write_cases("dialogue", n, seed, _SHAPE, _draft)


def _draft(layout: Layout, turn: int, rng: random.Random) -> Draft:
    greeting, main, ask, yes, no, drug, small, closing, order = layout
    disease = rng.choice(med.DISEASES)
    first, also = rng.sample([f for f in disease.findings if f in _SAID], 2)
    denied = rng.choice(unlike(_SAID, disease.findings))
    medical = [
        _finding(_ASKS[ask], _YES[yes], also, "Reports"),
        _finding(_ASKS[(ask + 1) % len(_ASKS)], _NO[no], denied, "Denies"),
        _drug(_DRUG_ASKS[drug], rng),
        *(write(rng) for write in rng.sample(_BACKGROUND, 1 + turn % 3 // 2)),
    ]
    if turn % 4 == 0:
        medical.pop(0)
    middle = medical[order:] + medical[:order]
    if small:
        middle.insert(rng.randint(1, len(middle) - 1), (_say(*_SMALL[small]), ""))
    turns = [(_say(*_GREETINGS[greeting]), ""), _complaint(_MAIN[main], first, disease.urgency, rng), *middle]
    text = "\n".join(said for said, _ in turns) + f"\nDoctor: {_CLOSINGS[closing]}"
    facts = [fact for _, fact in turns if fact]
    return Draft(text, {"summary": " ".join(f"{fact}." for fact in facts)}, {"facts": facts})


def _say(doctor: str, patient: str) -> str:
    return f"Doctor: {doctor}\nPatient: {capital(patient)}"


def _complaint(wording: Turn, finding: str, urgency: str, rng: random.Random) -> Turn:
    days = course(rng, urgency)
    wrong = rng.choice([other for other in med.DURATIONS if other != days])
    said = wording[1].format(lay=med.FINDINGS[finding], days=days, wrong=wrong)
    return _say(wording[0], said), f"Reports {finding} for {days}"


def _finding(wording: str, reply: str, finding: str, verb: str) -> Turn:
    lay = by_doctor(finding)
    return _say(wording.format(lay=lay, bare=bare(lay)), reply), f"{verb} {finding}"


def by_doctor(finding: str) -> str:
    """A finding as a doctor asks a patient for it: "a cough that wakes you at night"."""
    return asked(med.FINDINGS[finding]).replace(" me ", " you ")


def _drug(wording: str, rng: random.Random) -> Turn:
    """The medicine; every third patient corrects the dose."""
    drug = rng.choice(tuple(med.DRUGS))
    dose, often = rng.choice(med.DRUGS[drug]), rng.choice(_OFTEN.get(drug, ("once daily",)))
    other = next(d for d in med.DRUGS[drug] if d != dose)
    said = f"{other}, no wait, {dose}" if rng.random() < 0.3 else dose
    return _say(wording, f"I take {drug} {said} {often}."), f"Takes {drug} {dose} {often}"


def _allergy(rng: random.Random) -> Turn:
    if rng.random() < 0.3:
        return _say("Any allergies?", "None that I know of."), "No known allergies"
    substance = rng.choice(med.ALLERGIES)
    return _say("Any allergies?", f"Yes, {substance}."), f"Allergic to {substance}"


def _past(rng: random.Random) -> Turn:
    illness = rng.choice(med.PAST_HISTORY)
    return _say("Any illnesses before?", f"Yes, {illness}, some years ago."), f"History of {illness}"


def _work(rng: random.Random) -> Turn:
    job = rng.choice(med.OCCUPATIONS)
    article = "an" if job[0] in "aeiou" else "a"
    return _say("What is your work?", f"I am {article} {job}."), f"Works as {article} {job}"


_BACKGROUND: tuple[Callable[[random.Random], Turn], ...] = (_allergy, _past, _work)
