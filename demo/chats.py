"""Generic instructions as chats: repeat, find, compare, name, put into other words; no task of a study."""

from __future__ import annotations

import random
from collections.abc import Callable

from demo import medicine as med
from demo import scenes as sc
from demo.writing import bare, capital, listed, sentence

Message = dict[str, str]
Chat = list[Message]

_WORDS = (
    *sc.FINDINGS,
    *(d.name for d in med.DISEASES),
    *med.DRUGS,
    *med.ALLERGIES,
    *med.OCCUPATIONS,
    *med.DURATIONS,
    *med.MISLEADING,
)


def _chat(*turns: str) -> Chat:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def _copy(rng: random.Random) -> Chat:
    """Repeat random words: the plainest way to learn copying."""
    join = rng.choice((" ", " ", ", "))
    words = join.join(rng.sample(_WORDS, rng.randint(4, 12)))
    ask = rng.choice(("Repeat: {}", "Say this again: {}", "Copy these words: {}", "Write the same list. {}"))
    return _chat(ask.format(words), words)


def _pick_from_list(rng: random.Random) -> Chat:
    words = rng.sample(_WORDS, rng.randint(3, 6))
    inside = rng.choice(words)
    target = inside if rng.random() < 0.5 else rng.choice([w for w in _WORDS if w not in words])
    place, index = rng.choice((("first", 0), ("second", 1), ("last", -1)))
    context = ", ".join(words)
    return _chat(
        f"{context}. Is {target} in this list?",
        "yes" if target in words else "no",
        rng.choice(("Which is the {} one?", "Give me the {} item.", "What comes {}?")).format(place),
        words[index],
    )


def _knowledge(rng: random.Random) -> Chat:
    disease = rng.choice(med.DISEASES)
    few = listed(sc.some(rng, disease.findings, 3, 4))
    kin = [d.name for d in med.DISEASES if d is not disease and set(d.findings) & set(disease.findings)]
    options = [disease.name, *sc.some(rng, kin, 2, 3)]
    rng.shuffle(options)
    ask, reply = rng.choice(
        (
            ("List the findings of {name}.", listed(disease.findings)),
            ("What are the signs of {name}?", listed(disease.findings)),
            ("What causes {few}?", disease.name),
            ("Which disease has {few}?", disease.name),
            ("Which of {options} fits {few}?", disease.name),
            ("Pick one of {options} for {few}.", disease.name),
            ("Name a treatment for {name}.", disease.treatment),
            ("How is {name} treated?", disease.treatment),
            ("Give another name for {name}.", disease.synonyms[0]),
            ("Who looks after {name}?", disease.provider),
            ("How fast must {name} be seen?", disease.urgency),
        )
    )
    return _chat(ask.format(name=disease.name, few=few, options=listed(options, "or")), reply)


def _about_note(rng: random.Random) -> Chat:
    """A note and two things asked of it: what is there, what is not, which sentence, which drug."""
    patient = sc.scene(rng)
    note = " ".join(map(sentence, patient.lines))
    (first, one), (second, two) = rng.sample([*_about_findings(patient, rng), *_about_lines(patient)], 2)
    return _chat(f"{note} {first}" if rng.random() < 0.7 else f"{first} {note}", one, second, two)


def _about_findings(patient: sc.Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Questions about present, absent and unmentioned findings, with their answers."""
    present = patient.present
    missing = rng.choice([f for f in sc.FINDINGS if not any(f in line for line in patient.lines)])
    return [
        ("Which findings does the patient have?", listed(present)),
        ("Which findings matter?", listed(present)),
        ("What is wrong with the patient?", patient.disease.name),
        (f"Does the patient have {present[0]}?", "yes"),
        (f"Is {present[-1]} present now?", "yes"),
        (f"Is {missing} mentioned?", "no"),
        *((f"Does the patient have {finding}?", "no") for finding in patient.absent),
        *((f"Is {finding} present now?", "no") for finding in patient.absent),
    ]


def _about_lines(patient: sc.Scene) -> list[tuple[str, str]]:
    """Questions whose answer stands in one of the lines."""
    asks = [(f"Copy the sentence that mentions {patient.present[1]}.", sentence(patient.lines[0]))]
    for line in patient.lines[1:]:
        words = line.split()
        asks += [(f"Copy the sentence that mentions {f}.", sentence(line)) for f in patient.absent if f in line]
        if words[1] == "takes":
            asks += [("Which drug is mentioned?", words[2]), ("What is taken?", " ".join(words[2:]))]
        if "allergic" in line:
            asks.append(("What is the patient allergic to?", words[-1]))
    return asks


def _compare(rng: random.Random) -> Chat:
    if rng.random() < 0.5:
        text, word = sc.lab(rng, rng.choice(tuple(med.LABS)))
        ask = rng.choice(("Is {} high, low or normal?", "{}: high, low or normal?", "How do you call {}?"))
        return _chat(ask.format(text), word)
    high = rng.choice((2, 10, 50, 200))
    a, b = (f"{rng.uniform(0, high):.{1 if high < 50 else 0}f}" for _ in range(2))
    more = rng.random() < 0.5
    truth = float(a) > float(b) if more else float(a) < float(b)
    return _chat(f"Is {a} {'more' if more else 'less'} than {b}?", "yes" if truth else "no")


def _in_note_words(rng: random.Random) -> Chat:
    """Patient's words to note words, one to three at a time, some denied."""
    findings = rng.sample(sc.FINDINGS, rng.randint(1, 3))
    said, noted = [], []
    for finding in findings:
        lay = med.FINDINGS[finding]
        present = rng.random() < 0.65
        said.append(f"I have {lay}." if present else f"I have no {bare(lay)}.")
        noted.append(finding if present else f"no {finding}")
    ask = rng.choice(("Put this into medical words. {}", "{} Write it as a doctor would.", "In clinical terms: {}"))
    return _chat(ask.format(" ".join(said)), ", ".join(noted))


def _notes_of_talk(rng: random.Random) -> Chat:
    """A spoken exchange and the sentences that a note would hold, in its order."""
    items = sc.talk(rng, rng.randint(2, 4))
    lines = [said.spoken for said in items]
    if rng.random() < 0.4:
        lines.insert(rng.randint(0, len(lines)), rng.choice(sc.SMALL_TALK))
    ask = rng.choice(("What did we learn?", "Tell me what the patient said.", "Put it into sentences."))
    return _chat("\n".join([*lines, ask]), " ".join(f"The patient {said.note}." for said in items))


def _about_talk(rng: random.Random) -> Chat:
    """A spoken exchange and two or three questions about it."""
    items = sc.talk(rng, rng.randint(3, 5))
    turns = []
    for said in rng.sample(items, rng.randint(2, 3)):
        turns += [said.ask, said.answer]
    turns[0] = "\n".join([*(said.spoken for said in items), turns[0]])
    return _chat(*turns)


def _when(rng: random.Random) -> Chat:
    """Present, past or absent, said of one time."""
    finding = rng.choice(sc.FINDINGS)
    time = rng.choice(("now", "past", "never"))
    said = rng.choice({"now": sc.HAS, "past": sc.HAD, "never": sc.HAS_NOT}[time])
    line = f"the patient {said.format(finding)}"
    if rng.random() < 0.5:
        return _chat(f"{sentence(line)} Is it now, past or never?", time)
    return _chat(f"{sentence(line)} Is there {finding} now?", "yes" if time == "now" else "no")


def _then_and_now(rng: random.Random) -> Chat:
    """One finding, said of two times in either order."""
    now, before = rng.random() < 0.5, rng.random() < 0.5
    finding = rng.choice(sc.FINDINGS)
    said = [f"the patient {rng.choice(sc.HAS if x else sc.HAS_NOT).format(finding)}" for x in (now, before)]
    times = rng.choice(sc.TODAY), rng.choice(sc.BEFORE)
    lines = [sentence(f"{time} {line}") for time, line in zip(times, said, strict=True)]
    rng.shuffle(lines)
    ask = f"Is there {finding} {{}}?"
    (first, one), (second, two) = rng.sample([(times[0], now), (times[1], before)], 2)
    return _chat(f"{' '.join(lines)} {ask.format(first)}", _yes(one), capital(ask.format(second)), _yes(two))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _who_and_when(rng: random.Random) -> Chat:
    """A complaint, an alarming sign (now, denied, past, somebody else's), and questions about each."""
    words, (complaint, provider, urgency) = rng.choice(tuple(med.COMPLAINTS.items()))
    flag, lay = rng.choice(tuple(med.RED_FLAGS.items()))
    signs = {
        f"I have {lay} now.": "yes",
        f"I also have {lay} today.": "yes",
        f"And {lay} since this morning.": "yes",
        f"I have no {bare(lay)}.": "no",
        f"I had {lay} as a child, long gone.": "no",
        f"There was {lay} once, years ago.": "no",
        f"My neighbour has {lay}.": "no",
        f"I read about {lay}.": "no",
    }
    sign = rng.choice(tuple(signs))
    since = rng.choice(("", f" for {rng.choice(med.DURATIONS)}"))
    lines = [f"{rng.choice(('I have', 'My trouble is', 'It is about'))} {words}{since}.", sign]
    rng.shuffle(lines)
    emergency = [("Who should see me?", "emergency"), ("How soon?", "immediate")]
    asks = [
        ("Is there a red flag now?", signs[sign]),
        (f"Who sees {words}?", provider),
        (f"How soon is {complaint} seen?", urgency),
        (f"What is meant by {words}?", complaint),
        (f"What is meant by {lay}?", flag),
        *(emergency if signs[sign] == "yes" else []),
    ]
    (first, one), (second, two) = rng.sample(asks, 2)
    return _chat(f"{' '.join(lines)} {first}", one, second, two)


WRITERS: dict[Callable[[random.Random], Chat], float] = {
    _copy: 6,
    _pick_from_list: 4,
    _knowledge: 6,
    _about_note: 9,
    _compare: 4,
    _in_note_words: 6,
    _notes_of_talk: 12,
    _about_talk: 6,
    _when: 3,
    _then_and_now: 6,
    _who_and_when: 8,
}
