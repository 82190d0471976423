"""Pieces of clinical prose for the corpus: a patient in a note, a spoken question, a laboratory value."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from demo import medicine as med
from demo.writing import asked, bare, capital, drug_line, listed, person

HAS = (
    "has {}",
    "reports {}",
    "complains of {}",
    "describes {}",
    "presents with {}",
    "is troubled by {}",
    "noticed {}",
    "complained of {}",
    "reported {}",
)
HAS_NOT = (
    "denies {}",
    "has no {}",
    "does not have {}",
    "is free of {}",
    "reports no {}",
    "mentions no {}",
    "noticed no {}",
    "denied {}",
    "did not complain of {}",
)
HAD = (
    "had {} last year, now gone",
    "had {} years ago",
    "had {} in the past but not now",
    "has a history of {}",
    "lived with {} in childhood",
    "had {} long ago",
)
TODAY = ("today", "now", "this morning", "at this visit")
BEFORE = ("last year", "in spring", "months ago", "at the last visit", "years ago")
POSITIVE = (
    "the dipstick is positive for nitrites",
    "nitrites and leucocytes are found in the urine",
    "the urine culture grew {}",
    "the culture was positive",
    "the midstream urine showed heavy growth of {}",
)
NEGATIVE = (
    "the dipstick is negative for nitrites",
    "no nitrites are found in the urine",
    "the urine culture grew nothing",
    "the culture was sterile, no growth",
    "the midstream urine showed mixed growth, a contamination",
)
GERMS = ("E. coli", "Klebsiella", "Proteus", "enterococcus")
FINDINGS = tuple(med.FINDINGS)
SMALL_TALK = (
    "Doctor: Good morning, please sit down.\nPatient: Thank you, doctor.",
    "Doctor: How was the journey, was the bus late?\nPatient: Yes, late, but no problem.",
    "Doctor: Lovely weather.\nPatient: Yes, and cold outside.",
    "Doctor: How is the dog in the garden?\nPatient: Fine, a bit old, like me.",
    "Doctor: Did you watch the game?\nPatient: I did, it was lost.",
    "Doctor: Sorry that you had to wait. Is the family well?\nPatient: All well, very busy.",
    "Doctor: Come in, good to see you again.\nPatient: You too.",
    "Doctor: Hello, how are you?\nPatient: Hello, doctor, not so well.",
)
_PLACES = (
    "",
    "",
    "",
    "in the clinic ",
    "on the ward round ",
    "at a home visit ",
    "by telephone contact ",
    "at review ",
    "referred by the nurse, ",
)


@dataclass(frozen=True)
class Scene:
    """A patient in a note: ``lines`` are clauses in order; ``absent`` findings are denied in them."""

    disease: med.Disease
    present: list[str]
    absent: list[str]
    lines: list[str]


def scene(rng: random.Random) -> Scene:
    """Draw a patient with three or four findings of one disease and a few other lines."""
    disease = rng.choice(med.DISEASES)
    who, she = person(rng, disease.sex)
    present = some(rng, disease.findings, 3, 4)
    *absent, chronic = others(rng, disease.findings, 3)
    extras = [
        f"{she} {rng.choice(HAS_NOT).format(absent[0])}",
        rng.choice(("there is no {}", "{} is absent", "never {}", "no {} on asking")).format(absent[1]),
        f"{she} takes {' '.join(drug_line(rng))}",
        f"{she} is allergic to {rng.choice(med.ALLERGIES)}",
        f"{she} {rng.choice(HAD).format(rng.choice(med.PAST_HISTORY))}",
        f"{chronic} {rng.choice(('has been there for years, unchanged', 'is long known and no worse'))}",
        f"{she} {rng.choice(('also mentions', 'wonders about', 'blames'))} {rng.choice(med.MISLEADING)}",
        f"{she} works as a {rng.choice(med.OCCUPATIONS)}",
        f"{she} {rng.choice(med.SOCIAL)}",
    ]
    chosen = rng.sample(extras, rng.randint(2, 4))
    absent = [f for f in absent if any(f in line for line in chosen)]
    return Scene(disease, present, absent, [_opening(rng, who, she, present), *chosen])


def _opening(rng: random.Random, who: str, she: str, present: Sequence[str]) -> str:
    days = rng.choice(med.DURATIONS)
    if rng.random() < 0.7:
        return f"{rng.choice(_PLACES)}{who} {rng.choice(HAS).format(listed(present))} for {days}"
    first, then = listed(present[:2]), listed(present[2:])
    return rng.choice(
        (
            f"{who} was well until {days} ago, then {first} began, followed by {then}",
            f"{first} for {days} are why {who} is seen; the family noticed {then}",
            f"for {days} {who} has had {first} and {she} describes {then} as well",
        )
    )


def some(rng: random.Random, items: Sequence[str], low: int, high: int) -> list[str]:
    """Draw between ``low`` and ``high`` of the items, fewer if there are no more."""
    return rng.sample(list(items), min(len(items), rng.randint(low, high)))


def others(rng: random.Random, items: Sequence[str], n: int) -> list[str]:
    """Draw ``n`` findings that neither hold nor are held by one of ``items`` ("cough", "cough at night")."""
    return rng.sample([f for f in FINDINGS if not any(f in item or item in f for item in items)], n)


@dataclass(frozen=True)
class Said:
    """A spoken question and answer; ``note`` puts it into a sentence, ``ask``/``answer`` query it."""

    spoken: str
    note: str
    ask: str
    answer: str


def talk(rng: random.Random, n: int) -> list[Said]:
    """Draw ``n`` different things that doctor and patient speak of; one medicine, one allergy at most."""
    disease = rng.choice(med.DISEASES)
    here, denied = rng.sample(disease.findings, 3), others(rng, disease.findings, 2)
    items = [
        _complaint(rng, here[0]),
        exchange(rng, here[1], True),
        exchange(rng, here[2], True),
        *(exchange(rng, finding, False) for finding in denied),
        _medicine(rng),
        _allergy(rng),
        _past(rng),
        _job(rng),
    ]
    return rng.sample(items, n)


def _spoken(doctor: str, patient: str) -> str:
    return f"Doctor: {doctor}\nPatient: {capital(patient)}"


def _complaint(rng: random.Random, finding: str) -> Said:
    lay, days = med.FINDINGS[finding], rng.choice(med.DURATIONS)
    wrong = f"{rng.choice(med.DURATIONS)}, no, sorry, " if rng.random() < 0.25 else ""
    asks = (
        "What brings you here?",
        "What is the matter?",
        "How can I help?",
        "Tell me what happened.",
        "What is troubling you?",
    )
    said = (
        "I have {lay}, it began {wrong}{days} ago.",
        "I got {lay} {wrong}{days} ago and it stayed.",
        "It is {lay}, for {wrong}{days} now.",
        "I have had {lay} for {wrong}{days}.",
        "For {wrong}{days} I have had {lay}.",
    )
    spoken = _spoken(rng.choice(asks), rng.choice(said).format(lay=lay, wrong=wrong, days=days))
    return Said(spoken, f"has had {finding} for {days}", "For how long?", days)


def exchange(rng: random.Random, finding: str, present: bool) -> Said:
    """A question about one finding and its answer, with the doctor's or the patient's words for it."""
    lay = med.FINDINGS[finding]
    ask = rng.choice(("Do you have {0}?", "Have you noticed {0}?", "Any {1}?", "And {0}?"))
    yes = ("Yes, {0}.", "Yes, I do.", "I do, yes.", "Yes, that too.", "Yes, quite a lot.")
    no = ("No.", "No, not at all.", "No, none.", "Not really, no.", "I had that years ago, not now.")
    said = rng.choice(yes if present else no).format(lay)
    spoken = _spoken(ask.format(asked(lay), bare(asked(lay))), said)
    note = f"{'has' if present else 'denies'} {finding}"
    return Said(spoken, note, f"Is there {finding}?", "yes" if present else "no")


def _medicine(rng: random.Random) -> Said:
    drug, dose, often = drug_line(rng)
    first = rng.choice(med.DRUGS[drug])
    said = f"{dose} {often}" if first == dose else f"{first}, {rng.choice(('sorry', 'no wait'))}, {dose}, {often}"
    ask = rng.choice(("Which tablets?", "What do you take every day?", "Any medicines?"))
    return Said(_spoken(ask, f"I take {drug} {said}."), f"takes {drug} {dose} {often}", "Which drug?", f"{drug} {dose}")


def _allergy(rng: random.Random) -> Said:
    substance = rng.choice(med.ALLERGIES)
    if rng.random() < 0.25:
        return Said(_spoken("Any allergies?", "None that I know of."), "has no known allergies", "Any allergies?", "no")
    spoken = _spoken("Any allergies?", f"Yes, {substance}.")
    return Said(spoken, f"is allergic to {substance}", "Allergic to what?", substance)


def _past(rng: random.Random) -> Said:
    illness = rng.choice(med.PAST_HISTORY)
    spoken = _spoken("Any illnesses before?", f"I had {illness} some years ago.")
    return Said(spoken, f"has a history of {illness}", "Which illness was there before?", illness)


def _job(rng: random.Random) -> Said:
    job = rng.choice(med.OCCUPATIONS)
    return Said(_spoken("What is your work?", f"I am a {job}."), f"works as a {job}", "What is the work?", job)


def lab(rng: random.Random, name: str) -> tuple[str, str]:
    """Draw a laboratory value and its word: ``("lactate 3.1 mmol/L", "high")``."""
    unit, digits, low, high = med.LABS[name]
    width = high - low
    text = f"{max(0.0, rng.uniform(low - 0.6 * width, high + 1.2 * width)):.{digits}f}"
    word = "low" if float(text) < low else "high" if float(text) > high else "normal"
    return f"{name} {text} {unit}", word


def team(provider: str) -> str:
    """The provider as prose names it: ``a nurse``, ``the emergency team``, ``primary care``."""
    return {"emergency": "the emergency team", "primary care": "primary care"}.get(provider, f"a {provider}")
