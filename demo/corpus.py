"""Pretraining documents for the built-in models: the language, the medicine and generic instructions.

The stream may teach what any clinician reads and says; it never shows a task's prompt or target format
and never a test case (a test holds this). Copying, negation, past against present, comparing numbers and
patient's words against note words come up in many small documents, since the models are tiny.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from demo import chats
from demo import medicine as med
from demo import scenes as sc
from demo.writing import bare, listed, person, sentence

Document = list[chats.Message] | str


def documents(seed: int) -> Iterator[Document]:
    """Yield pretraining documents without end; the same seed yields the same stream.

    A document is plain text or a chat: messages with ``role`` (user, assistant, ...) and ``content``.
    """
    rng = random.Random(f"corpus {seed}")
    writers = tuple(_WRITERS)
    weights = tuple(_WRITERS.values())
    while True:
        yield rng.choices(writers, weights)[0](rng)


_TEXTBOOK = (
    "{name} causes {few}",
    "the findings of {name} are {all}",
    "typical of {name} are {few}",
    "patients with {name} often have {few}",
    "{few} together suggest {name}",
    "when {few} come together, think of {name}",
    "a patient with {few} most likely has {name}",
    "{few} are explained by {name}",
    "{synonym} is another name for {name}",
    "{name} is also called {synonym}",
    "{name} is treated with {treatment}",
    "the usual treatment of {name} is {treatment}",
    "{treatment} is given for {name}",
    "{name} is handled by {provider} and the urgency is {urgency}",
    "{name} belongs to {department}",
    # the words of a clinician's headings, inside sentences: LoRA cannot teach a token that was never seen
    "findings of {name} are {few}",
    "diagnosis of {name} rests on {few}",
    "provider for {name} is {provider}",
    "urgency of {name} is {urgency}",
)


def _textbook(rng: random.Random) -> str:
    disease = rng.choice(med.DISEASES)
    lines = [
        template.format(
            name=disease.name,
            few=listed(sc.some(rng, disease.findings, 3, 4)),
            all=listed(rng.sample(disease.findings, len(disease.findings))),
            synonym=rng.choice(disease.synonyms),
            treatment=disease.treatment,
            provider=sc.team(disease.provider),
            urgency=disease.urgency,
            department=disease.department,
        )
        for template in rng.sample(_TEXTBOOK, rng.randint(3, 5))
    ]
    return _prose(lines)


def _prose(lines: list[str]) -> str:
    return " ".join(map(sentence, lines))


def _versus(rng: random.Random) -> str:
    """Two diseases that share findings, and what tells them apart."""
    one = rng.choice(med.DISEASES)
    two = rng.choice([d for d in med.DISEASES if d is not one and set(d.findings) & set(one.findings)])
    shared = sorted(set(one.findings) & set(two.findings))
    own = rng.choice([f for f in one.findings if f not in shared])
    other = rng.choice([f for f in two.findings if f not in shared])
    return _prose(
        [
            f"{one.name} and {two.name} share {listed(shared[:3])}",
            f"look for {own} in {one.name} and for {other} in {two.name}",
        ]
    )


def _note(rng: random.Random) -> str:
    patient = sc.scene(rng)
    name = patient.disease.name
    endings = (
        f"this is most likely {name}",
        f"what matters here is {listed(patient.present)}, so it is {name}",
        f"the impression is {name}, treated with {patient.disease.treatment}",
        f"{listed(patient.present)} make us think of {name}",
        f"{sc.team(patient.disease.provider)} will see the patient; urgency {patient.disease.urgency}",
    )
    return _prose([*patient.lines, rng.choice(endings)])


def _letter(rng: random.Random) -> str:
    patient = sc.scene(rng)
    ask = [f"I think this is {patient.disease.name}", f"please arrange {patient.disease.treatment}"]
    opening = f"Dear {patient.disease.department} team, thank you for your help."
    return f"{opening} {_prose(patient.lines[:3] + ask)} Kind regards"


_ABOUT_ME = (
    "I am pregnant",
    "I am expecting a baby",
    "I take warfarin",
    "I am on chemotherapy",
    "I live alone",
    "I have diabetes",
    "my uncle had a stroke",
    "my neighbour worries",
)


def _message(rng: random.Random) -> str:
    """A patient writes; the note puts it into clinical words."""
    disease = rng.choice(med.DISEASES)
    present = sc.some(rng, disease.findings, 2, 3)
    absent = sc.others(rng, disease.findings, 1)[0]
    lay = listed([med.FINDINGS[f] for f in present])
    hello = rng.choice(("Hello, ", "Hi there, ", "Good morning, ", "Dear team, I need some advice, ", ""))
    since = rng.choice(("for {}", "since {} ago", "and it has been {}")).format(rng.choice(med.DURATIONS))
    own = rng.choice(("I have {}", "I am writing about {}", "I have had {}", "I noticed {}")).format(lay)
    no = rng.choice(("I have no {}", "there is no {}", "and no {}"))
    denied = no.format(bare(med.FINDINGS[absent]))
    me = f"{rng.choice(_ABOUT_ME)} and I am {rng.randint(19, 90)} years old"
    end = rng.choice(("Thank you.", "Can this wait?", "What should I do?", "Please tell me."))
    note = f"The note says {listed(present)}, no {absent}."
    return f"{hello}{own} {since}. {_prose([denied, me])} {end} {note}"


def _exchange(rng: random.Random) -> str:
    lines = [said.spoken for said in sc.talk(rng, rng.randint(3, 5))]
    lines.insert(rng.randint(0, 1), rng.choice(sc.SMALL_TALK))
    look = rng.choice(("Let us have a look", "I will examine you", "We will do some tests"))
    return "\n".join([*lines, f"Doctor: {look}, thank you."])


def _labs(rng: random.Random) -> str:
    values = [sc.lab(rng, name) for name in rng.sample(tuple(med.LABS), rng.randint(3, 5))]
    join = rng.choice((" is {}, ", " was {}, ", " ({}), "))
    line = "".join(text + join.format(word) for text, word in values)
    return sentence(line + rng.choice(tuple(med.LABS)) + " not done")


_SEPSIS = (
    "sepsis from the urine is called urosepsis",
    "urosepsis is likely when temperature, heart rate and lactate are high",
    "a low systolic pressure with a high lactate points to urosepsis",
    "a high respiratory rate and high white cells make urosepsis more likely",
    "many urine leucocytes with a high c-reactive protein suggest an infection of the urine",
    "normal lactate, normal temperature and normal heart rate make urosepsis unlikely",
    "a high creatinine shows that the kidneys suffer",
)


def _sepsis(rng: random.Random) -> str:
    return _prose(rng.sample(_SEPSIS, 3))


def _urine(rng: random.Random) -> str:
    """Symptoms and urine evidence, of today and of earlier times, and what they mean together."""
    who, she = person(rng)
    ill, positive = rng.random() < 0.5, rng.random() < 0.5
    meaning = {
        (True, True): "symptoms and urine evidence are both there, so this is a urinary tract infection",
        (True, False): "without urine evidence this is not a urinary tract infection",
        (False, True): "bacteria without symptoms are colonisation, not infection",
        (False, False): "there are neither symptoms nor urine evidence",
    }[ill, positive]
    lines = [f"{who} {_bladder(rng, ill)}", f"{rng.choice(sc.TODAY)} {_evidence(rng, positive)}"]
    if rng.random() < 0.4:
        past = _evidence(rng, not positive) if rng.random() < 0.5 else f"{she} {_bladder(rng, not ill)}"
        lines.append(f"{rng.choice(sc.BEFORE)} {past}")
    if rng.random() < 0.4:
        contexts = ("{} has a catheter", "{} awaits a hip operation", "the bladder scan shows a known kidney stone")
        lines.append(rng.choice(contexts).format(she))
    rng.shuffle(lines)
    return _prose([*lines, meaning])


def _bladder(rng: random.Random, ill: bool) -> str:
    symptoms = listed(sc.some(rng, med.BLADDER_SYMPTOMS, 1, 2), "and" if ill else "or")
    return rng.choice(sc.HAS if ill else sc.HAS_NOT).format(symptoms)


def _evidence(rng: random.Random, positive: bool) -> str:
    return rng.choice(sc.POSITIVE if positive else sc.NEGATIVE).format(rng.choice(sc.GERMS))


def _care(rng: random.Random) -> str:
    """Who sees what, how fast, and what makes an alarming word count."""
    disease = rng.choice(med.DISEASES)
    flag, lay = rng.choice(tuple(med.RED_FLAGS.items()))
    words, (complaint, provider, urgency) = rng.choice(tuple(med.COMPLAINTS.items()))
    lines = [
        f"{flag} now is a red flag for the emergency team, immediate",
        f"{lay} means {flag}, a red flag",
        f"{flag} as a child or last year, long gone, is no red flag today",
        f"{flag} that a neighbour or an uncle has, or that one read about, is no red flag",
        f"without {flag} there is time",
        f"{disease.name} goes to {sc.team(disease.provider)}, {disease.urgency}",
        f"{words} goes to {sc.team(provider)}, {urgency}",
        f"patients who write of {words} mean {complaint}",
        f"{complaint} is seen by {sc.team(provider)} and is {urgency}",
        f"{complaint} while expecting a baby or for many weeks is more urgent",
        "immediate means now, urgent means today, soon means this week, routine means any time",
        "a knock to my head while I take warfarin or apixaban needs the emergency team today",
        "some bleeding down below while pregnant needs the emergency team today",
        "a mild fever during chemotherapy needs the emergency team today",
        "a knock to the head of an old patient needs the emergency team today",
    ]
    return _prose(rng.sample(lines, 4))


_WRITERS: dict[Callable[[random.Random], Document], float] = {
    _textbook: 9,
    _versus: 3,
    _note: 7,
    _letter: 2,
    _message: 6,
    _exchange: 6,
    _labs: 4,
    _sepsis: 1,
    _urine: 7,
    _care: 7,
    **chats.WRITERS,
}
