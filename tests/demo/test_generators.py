"""The generators and the corpus: deterministic, balanced, apart by group, and never one in the other."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from demo import clinical_triage, medicine, numeric_classification
from demo.cases import CASES, FOLDER, SEED, lines
from demo.cases import GENERATORS as FILES
from demo.corpus import documents
from demo.summarization import by_doctor
from demo.writing import bare, unlike
from medstudy.data.card import load_card
from medstudy.data.load import load_cases

FORBIDDEN = ("Diagnosis:", "Findings:", "Provider:", "Urgency:", "Question:", "Answer with")


@pytest.fixture(scope="module")
def cases():
    """The first 400 cases of each task, as they ship."""
    return {card.task: load_cases(card).cases[:400] for card in (load_card(f"synthetic_{file}") for file in FILES)}


@pytest.fixture(scope="module")
def corpus():
    texts = []
    for document in itertools.islice(documents(1), 8000):
        texts.append(document if isinstance(document, str) else "\n".join(m["content"] for m in document))
    return texts


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.mark.parametrize("file", FILES)
def test_the_files_that_ship_are_what_the_generators_write(file: str, tmp_path: Path, monkeypatch) -> None:
    """Red after a change of a generator: `python -m demo.cases`, and all results of the demo are others."""
    made = FILES[file](CASES, SEED)
    assert (FOLDER / f"{file}.jsonl").read_text(encoding="utf-8") == lines(made)
    monkeypatch.chdir(tmp_path)  # a card's files are found from any folder, with any data_root
    card = load_card(f"synthetic_{file}")
    for data_root in ("", str(tmp_path)):
        read = load_cases(card, data_root)
        assert read.rows_in == CASES and not read.dropped
        assert [(c.case_id, c.group_id, c.text, c.gold, c.details) for c in read.cases] == [
            (c.case_id, c.group_id, c.text, c.gold, c.details) for c in made
        ]


def test_cases_are_distinct_short_and_one_on_a_template(cases):
    for name, made in cases.items():
        assert len({case.group_id for case in made}) == 400, name
        assert len({case.text for case in made}) == len({case.case_id for case in made}) == 400, name
        lengths = sorted(len(case.text.split()) for case in made)
        assert 20 <= lengths[200] <= 100 and lengths[-1] <= 120, name
    for name in ("text_classification", "numeric_classification"):
        assert 160 <= sum(case.gold["label"] == "yes" for case in cases[name]) <= 240, name


def test_a_passage_is_positive_only_with_symptoms_and_urine_of_now(cases):
    """Read the present sentences with rules of the test's own; earlier ones must not matter."""
    symptom = "|".join(medicine.BLADDER_SYMPTOMS)
    negated = re.compile(r"\bno\b|\bdenied\b|\bfree of\b|\bdid not\b|\bnegative\b|\bnothing\b|\bsterile\b|\bmixed\b")
    for case in cases["text_classification"]:
        now = [s for s in re.split(r"(?<!E)\. ", case.text) if re.match("Today|This morning|At (this|rev)", s)]
        ill = any(re.search(symptom, s.lower()) and not negated.search(s) for s in now)
        positive = any(re.search("urine|dipstick", s) and not negated.search(s) for s in now)
        assert case.gold["label"] == ("yes" if ill and positive else "no"), case.text


def test_no_word_gives_the_label_away(cases):
    """Bag of words, groups apart: better than chance, far from right."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    made = FILES["uti"](800, 11)
    train, test = made[:300], made[400:]
    bag = CountVectorizer()
    model = LogisticRegression(max_iter=2000).fit(
        bag.fit_transform(case.text for case in train), [case.gold["label"] for case in train]
    )
    answers = model.predict(bag.transform(case.text for case in test))
    assert f1_score([case.gold["label"] for case in test], answers, pos_label="yes") < 0.75


def test_numbers_are_those_of_the_text_and_the_label_stays_uncertain(cases):
    missing, best = 0, []
    for case in cases["numeric_classification"]:
        features = case.details["features"]
        assert list(features) == list(numeric_classification.PANEL)
        missing += sum(value is None for value in features.values())
        for name, value in features.items():
            unit, decimals = medicine.LABS[name][:2]
            assert (f"{name} not done" if value is None else f"{name} {value:.{decimals}f} {unit}") in case.text
        if None not in features.values():
            p = numeric_classification.probability(features)
            best.append(max(p, 1 - p))
    assert 0.05 <= missing / (400 * 8) <= 0.11
    assert 0.8 <= math.fsum(best) / len(best) <= 0.95  # the Bayes accuracy


def test_vignettes_have_one_answer_and_it_is_among_the_options(cases):
    known = {disease.name: set(disease.findings) for disease in medicine.DISEASES}
    assert len({c.gold["diagnosis"] for c in cases["clinical_reasoning"]}) == len(medicine.DISEASES) == 24
    for case in cases["clinical_reasoning"]:
        gold, details = case.gold["diagnosis"], case.details
        matter = set(details["findings"])
        assert len(matter) == 4 and matter <= known[gold]
        assert all(finding in case.text.lower() for finding in matter)
        denied = re.search(r"(?:has no|denies|reports no|no) ([a-z ]+?)(?: on asking)?\.", case.text.lower())
        assert unlike([denied[1]], details["findings"]), case.text
        assert max(len(matter & found) for name, found in known.items() if name != gold) <= 3
        assert list(details["options"]) == list("ABCD")
        assert len(set(details["options"].values())) == 4
        assert gold in details["options"].values() and gold not in case.text.lower()


def test_the_summary_is_its_facts_and_the_dialogue_holds_them(cases):
    denied = corrected = 0
    for case in cases["summarization"]:
        facts = case.details["facts"]
        denials = [fact.removeprefix("Denies ") for fact in facts if fact.startswith("Denies")]
        reported = [fact.split(" for ")[0].removeprefix("Reports ") for fact in facts if "Reports" in fact]
        assert unlike(denials, reported) == denials
        assert case.gold["summary"] == " ".join(f"{fact}." for fact in facts)
        assert 4 <= len(facts) <= 6 and len(set(facts)) == len(facts)
        assert all(line.startswith(("Doctor: ", "Patient: ")) for line in case.text.splitlines())
        text = case.text.lower()
        for fact in facts:
            if match := re.match(r"(?:Reports|Denies) (.+?)(?: for (\d+ \w+))?$", fact):
                lay = medicine.FINDINGS[match[1]]
                assert lay.lower() in text or bare(by_doctor(match[1])).lower() in text, fact
                assert (match[2] or "") in text
            if fact.startswith("Takes"):
                drug, dose = re.match(r"Takes (\w+) (\d+ m?c?g)", fact).groups()
                assert drug in text and dose in text
            denied += fact.startswith("Denies")
        corrected += "no wait" in text or "no, sorry" in text
    assert denied >= 300 and corrected >= 100


def test_triage_rules():
    rule = clinical_triage.triage
    hay, knock = "itchy eyes from hay fever", "a knock to my head"
    assert rule(hay, False, "plain", False) == ("pharmacist", "routine")
    assert rule(hay, True, "plain", False) == ("emergency", "immediate")
    assert rule(hay, False, "pregnant", False) == ("primary care", "soon")
    assert rule(hay, False, "plain", True) == ("primary care", "soon")
    assert rule(knock, False, "plain", False) == ("nurse", "soon")
    assert rule(knock, False, "thinner", False) == rule(knock, False, "old", False) == ("emergency", "urgent")
    assert rule("a lump in my breast", False, "plain", True) == ("specialist", "urgent")


def test_triage_answers_are_balanced_and_alarming_words_are_not_enough(cases):
    made = cases["clinical_triage"]
    assert set(Counter(case.gold["provider"] for case in made)) == set(medicine.PROVIDERS)
    urgency = Counter(case.gold["urgency"] for case in made)
    assert set(urgency) == set(medicine.URGENCIES) and min(urgency.values()) >= 30
    calm = [case for case in made if case.gold["provider"] != "emergency"]
    denied = re.compile(r"\bno |Years ago|as a child|I once|neighbour|uncle|I read")
    assert len(calm) > 300 and all(denied.search(case.text) for case in calm)


def test_the_hurried_nurse_only_ever_underrates():
    made = FILES["messages"](CASES, SEED)
    order = medicine.URGENCIES.index
    other = [case for case in made if case.demonstration != case.gold]
    assert 0.15 <= len(other) / len(made) <= 0.3
    assert all(order(case.demonstration["urgency"]) <= order(case.gold["urgency"]) for case in made)
    read = load_cases(load_card("synthetic_flawed_triage")).cases
    assert [(c.gold, c.recorded().gold) for c in read] == [(c.gold, c.demonstration) for c in made]


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        ("messages", r"no (not|too) |(neighbour|uncle|read about) [^.]*\b(my|I)\b|since \d|knock to my head for"),
        (
            "dialogues",
            r"Any (a |too )|Doctor: (Any|And|Do|Have)\b.*\b(my|me|I)\b|throwing up|Yes, I do|xaban.*needed",
        ),
        ("vignettes", r"There is|absent|since childhood|unchanged|noticed|crushing[^.]*(weeks|months)"),
        ("uti", r"\bNow\b"),
    ],
)
def test_sentences_that_a_clinician_would_stumble_over_are_not_written(file: str, wrong: str):
    assert not [c.text for c in FILES[file](CASES, SEED) if re.search(wrong, c.text)]


def test_corpus_is_deterministic_short_and_well_formed():
    first = list(itertools.islice(documents(1), 500))
    assert first == list(itertools.islice(documents(1), 500))
    assert first != list(itertools.islice(documents(2), 500))
    for document in first:
        if isinstance(document, str):
            assert 5 <= len(document.split()) <= 130
        else:
            assert [m["role"] for m in document] == ["user", "assistant"] * (len(document) // 2)
            assert all(m["content"].strip() for m in document)


def test_corpus_knows_every_word_of_the_cases(cases, corpus):
    known = set().union(*map(words, corpus))
    for name, made in cases.items():
        used = set().union(*(words(case.text) | words(" ".join(case.gold.values())) for case in made))
        assert len(used - known) <= 2, (name, used - known)


def test_corpus_holds_no_case_and_no_task_format(cases, corpus):
    everything = "\n".join(corpus)
    assert not [phrase for phrase in FORBIDDEN if phrase.lower() in everything.lower()]
    for made in cases.values():
        assert not [case.case_id for case in made if case.text in everything]
    # LoRA cannot teach a token that the base never saw: without them most samples had garbled headings
    assert all(everything.count(f"{word} ") > 5 for word in ("Findings", "Diagnosis", "Provider", "Urgency"))
