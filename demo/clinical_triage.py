"""Patient messages: who should see the patient, and how soon.

`triage` holds the rules. A message names a complaint, says how long it has lasted and something about the
patient; an alarming sign may be there now, be denied, be long past, or belong to somebody else.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from demo import medicine as med
from demo.writing import Draft, Layout, bare, capital, write_cases
from medstudy.data.cases import Case

# Harmless for most, dangerous in one context: patient's words -> (provider, urgency, dangerous contexts).
EVENTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "a knock to my head": ("nurse", "soon", ("thinner", "old")),
    "some bleeding down below": ("primary care", "soon", ("pregnant",)),
    "a mild fever": ("pharmacist", "soon", ("chemotherapy",)),
}
CONTEXTS: dict[str, tuple[str, ...]] = {
    "thinner": ("I take warfarin", "I take apixaban"),
    "pregnant": ("I am pregnant", "I am expecting a baby"),
    "chemotherapy": ("I am on chemotherapy", "I had chemotherapy last week"),
    "old": ("I take ramipril", "I have asthma", "I live alone", "I have diabetes"),
    "plain": ("I take ramipril", "I have asthma", "I live alone", "I have diabetes"),
}
_AGES = {"old": (75, 90), "thinner": (45, 70), "pregnant": (19, 44)}  # years; everybody else is 30 to 64
SHORT, LONG = med.DURATIONS[:6], med.DURATIONS[7:]
_COMPLAINTS = {words: (provider, urgency) for words, (_, provider, urgency) in med.COMPLAINTS.items()}
_BASE = _COMPLAINTS | {words: (provider, urgency) for words, (provider, urgency, _) in EVENTS.items()}


def triage(complaint: str, red_flag: bool, context: str, long: bool) -> tuple[str, str]:
    """Return (provider, urgency). Rules in order, the first that applies decides:

    1. a red flag now: emergency, immediate;
    2. an event of `EVENTS` in its dangerous context: emergency, urgent;
    3. pregnant: what a nurse or a pharmacist would see goes to primary care, one step more urgent;
    4. three weeks or longer: one step more urgent, and a pharmacist hands over to primary care;
    5. otherwise the complaint's own provider and urgency.

    A step never goes beyond urgent. Rules 3 and 4 are not added up.
    """
    provider, urgency = _BASE[complaint]
    if red_flag:
        return "emergency", "immediate"
    if complaint in EVENTS and context in EVENTS[complaint][2]:
        return "emergency", "urgent"
    if context == "pregnant" and provider in ("nurse", "pharmacist"):
        return "primary care", _step(urgency)
    if long:
        return ("primary care" if provider == "pharmacist" else provider), _step(urgency)
    return provider, urgency


# A nurse in a hurry looks at the complaint alone: not at an alarming sign, nor at the patient, nor at how long it has
# lasted. So often is the nurse of `synthetic_flawed_triage` in a hurry; each of these errors is an under-triage.
HURRIED = 0.7
# Alarming signs in patients' words; two say it otherwise than `medicine`, so that they fit after "have" and "had".
SIGNS = tuple(
    {"a blackout": "blackouts", "not enough breath to finish a sentence": "too little breath to finish a sentence"}.get(
        lay, lay
    )
    for lay in med.RED_FLAGS.values()
)


def _step(urgency: str) -> str:
    return med.URGENCIES[min(med.URGENCIES.index(urgency) + 1, med.URGENCIES.index("urgent"))]


_HELLO = ("Hello.", "Good morning.", "Dear team.", "Hi there.", "I need some advice.", "Sorry to write again.")
_MAIN = (
    "I have had {lay} for {days}.",
    "For {days} I have had {lay}.",
    "It is about {lay}, {days} now.",
    "I am writing about {lay}. It has been {days}.",
    "My trouble is {lay}, for {days} now.",
)
# what happened once, beside what lasts
_HAPPENED = (
    "I had {lay} {days} ago.",
    "{days} ago I had {lay}.",
    "It is about {lay}, {days} ago.",
    "I am writing about {lay}. It was {days} ago.",
    "My trouble is {lay}, {days} ago.",
)
_FLAG = {
    "now": ("Now I also have {lay}.", "I also have {lay} today.", "And {lay} since this morning."),
    "denied": ("I have no {bare}.", "Today I have no {bare}.", "I have had no {bare}."),
    "past": ("Years ago I had {lay}.", "I had {lay} as a child.", "I once had {lay}, long gone."),
    "other": ("My neighbour has {theirs}.", "My uncle had {theirs} today.", "I read about {theirs}."),
}
_ENDINGS = ("Thank you.", "What should I do?", "Who should I see?", "Please tell me.", "Can this wait?")
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1))
_SHAPE = (len(_HELLO), len(_MAIN), 3, len(_ENDINGS), len(_ORDERS))


def generate(n: int, seed: int) -> list[Case]:
    """Write ``n`` messages with gold ``provider`` and ``urgency``; the providers come equally often."""
    return write_cases("message", n, seed, _SHAPE, _draft)


def _draft(layout: Layout, turn: int, rng: random.Random) -> Draft:
    hello, main, flag, ending, order = layout
    complaint, state, context, long = _situation(med.PROVIDERS[turn % len(med.PROVIDERS)], rng)
    lay = rng.choice([lay for lay in SIGNS if state != "denied" or not lay.startswith("too little")])
    theirs = lay.replace(" my ", " the ").replace("when I cough", "in the phlegm")
    days = rng.choice(LONG if long else SHORT)
    lines = (
        capital((_HAPPENED if complaint == "a knock to my head" else _MAIN)[main].format(lay=complaint, days=days)),
        _FLAG[state][flag].format(lay=lay, bare=bare(lay), theirs=theirs),
        f"{rng.choice(CONTEXTS[context])} and I am {rng.randint(*_AGES.get(context, (30, 64)))} years old.",
    )
    text = " ".join([_HELLO[hello], *(lines[i] for i in _ORDERS[order]), _ENDINGS[ending]])
    right, plain = triage(complaint, state == "now", context, long), triage(complaint, False, "plain", False)
    noted = plain if rng.random() < HURRIED else right
    return Draft(text, _answer(right), demonstration=_answer(noted))


def _answer(levels: tuple[str, str]) -> Mapping[str, str]:
    return dict(zip(("provider", "urgency"), levels, strict=True))


def _situation(provider: str, rng: random.Random) -> tuple[str, str, str, bool]:
    """Draw complaint, state of the alarming sign, context and long or not until ``provider`` is right."""
    while True:
        complaint = rng.choice(tuple(EVENTS) if rng.random() < 0.3 else tuple(_COMPLAINTS))
        state = rng.choice(("now", "denied", "past", "other"))
        context = rng.choice((*CONTEXTS, "plain", "plain", "plain"))
        long = complaint not in EVENTS and rng.random() < 0.2
        if triage(complaint, state == "now", context, long)[0] == provider:
            return complaint, state, context, long
