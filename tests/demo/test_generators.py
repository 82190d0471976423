"""The generators and the corpus: deterministic, balanced, apart by group, and never one in the other."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import islice
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


@pytest.fixture(scope="module")
def cases():
    """The first 400 cases of each generator, as they ship."""
    return {file: load_cases(load_card(f"synthetic_{file}")).cases[:400] for file in FILES}


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.mark.parametrize("file", FILES)
def test_the_files_that_ship_are_what_the_generators_write(file: str, tmp_path: Path, monkeypatch) -> None:
    """Red after a change of a generator: `python -m demo.cases`, and all results of the demo are others."""
    made = FILES[file](CASES, SEED)
    assert (FOLDER / f"{file}.jsonl").read_text(encoding="utf-8") == lines(made)
    monkeypatch.chdir(tmp_path)  # a card's files are found from any folder, with any data_root
    for data_root in ("", str(tmp_path)):
        read = load_cases(load_card(f"synthetic_{file}"), data_root)
        assert read.rows_in == CASES and not read.dropped
        keys = ("case_id", "group_id", "text", "gold", "details")
        assert all(getattr(a, key) == getattr(b, key) for a, b in zip(read.cases, made, strict=True) for key in keys)


def test_cases_are_distinct_short_balanced_and_one_on_a_template(cases):
    for file, made in cases.items():
        for name in ("group_id", "text", "case_id"):
            assert len({getattr(case, name) for case in made}) == 400, (file, name)
        lengths = sorted(len(case.text.split()) for case in made)
        assert 20 <= lengths[200] <= 100 and lengths[-1] <= 120, file
    for file in ("uti", "urosepsis"):
        assert 160 <= sum(case.gold["label"] == "yes" for case in cases[file]) <= 240, file


def test_a_passage_is_positive_only_with_symptoms_and_urine_of_now(cases):
    """Read the present sentences with rules of the test's own; earlier ones must not matter."""
    symptom = "|".join(medicine.BLADDER_SYMPTOMS)
    negated = re.compile(r"\bno\b|\bdenied\b|\bfree of\b|\bdid not\b|\bnegative\b|\bnothing\b|\bsterile\b|\bmixed\b")
    for case in cases["uti"]:
        now = [s for s in re.split(r"(?<!E)\. ", case.text) if re.match("Today|This morning|At (this|rev)", s)]
        ill = any(re.search(symptom, s.lower()) and not negated.search(s) for s in now)
        positive = any(re.search("urine|dipstick", s) and not negated.search(s) for s in now)
        assert case.gold["label"] == ("yes" if ill and positive else "no"), case.text


def test_numbers_are_those_of_the_text_and_the_label_stays_uncertain(cases):
    missing, best = 0, []
    for case in cases["urosepsis"]:
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
    assert len({c.gold["diagnosis"] for c in cases["vignettes"]}) == len(medicine.DISEASES) == 24
    for case in cases["vignettes"]:
        gold, options, matter = case.gold["diagnosis"], case.details["options"], set(case.details["findings"])
        assert len(matter) == 4 and matter <= known[gold]
        assert all(finding in case.text.lower() for finding in matter)
        denied = re.search(r"(?:has no|denies|reports no|no) ([a-z ]+?)(?: on asking)?\.", case.text.lower())
        assert unlike([denied[1]], case.details["findings"]), case.text
        assert max(len(matter & found) for name, found in known.items() if name != gold) <= 3
        assert list(options) == list("ABCD") and len(set(options.values())) == 4
        assert gold in options.values() and gold not in case.text.lower()


def test_the_summary_is_its_facts_and_the_dialogue_holds_them(cases):
    denied = corrected = 0
    for case in cases["dialogues"]:
        facts, text = case.details["facts"], case.text.lower()
        denials = [fact.removeprefix("Denies ") for fact in facts if fact.startswith("Denies")]
        reported = [fact.split(" for ")[0].removeprefix("Reports ") for fact in facts if "Reports" in fact]
        assert unlike(denials, reported) == denials
        assert case.gold["summary"] == " ".join(f"{fact}." for fact in facts)
        assert 4 <= len(facts) <= 6 and len(set(facts)) == len(facts)
        assert all(line.startswith(("Doctor: ", "Patient: ")) for line in case.text.splitlines())
        for fact in facts:
            if match := re.match(r"(?:Reports|Denies) (.+?)(?: for (\d+ \w+))?$", fact):
                lay = medicine.FINDINGS[match[1]]
                assert lay.lower() in text or bare(by_doctor(match[1])).lower() in text, fact
                assert (match[2] or "") in text
            if fact.startswith("Takes"):
                assert all(part in text for part in re.match(r"Takes (\w+) (\d+ m?c?g)", fact).groups())
        denied += len(denials)
        corrected += "no wait" in text or "no, sorry" in text
    assert denied >= 300 and corrected >= 100


def test_triage_rules() -> None:
    rule, hay, knock = clinical_triage.triage, "itchy eyes from hay fever", "a knock to my head"
    assert rule(hay, False, "plain", False) == ("pharmacist", "routine")
    assert rule(hay, True, "plain", False) == ("emergency", "immediate")
    assert rule(hay, False, "pregnant", False) == rule(hay, False, "plain", True) == ("primary care", "soon")
    assert rule(knock, False, "plain", False) == ("nurse", "soon")
    assert rule(knock, False, "thinner", False) == rule(knock, False, "old", False) == ("emergency", "urgent")
    assert rule("a lump in my breast", False, "plain", True) == ("specialist", "urgent")


def test_triage_answers_are_balanced_and_alarming_words_are_not_enough(cases):
    made = cases["messages"]
    assert {case.gold["provider"] for case in made} == set(medicine.PROVIDERS)
    urgency = Counter(case.gold["urgency"] for case in made)
    assert set(urgency) == set(medicine.URGENCIES) and min(urgency.values()) >= 30
    calm = [case for case in made if case.gold["provider"] != "emergency"]
    denied = re.compile(r"\bno |Years ago|as a child|I once|neighbour|uncle|I read")
    assert len(calm) > 300 and all(denied.search(case.text) for case in calm)


def test_the_hurried_nurse_only_ever_underrates():
    made, order = FILES["messages"](CASES, SEED), medicine.URGENCIES.index
    assert 0.15 <= sum(case.demonstration != case.gold for case in made) / len(made) <= 0.3
    assert all(order(case.demonstration["urgency"]) <= order(case.gold["urgency"]) for case in made)
    read = load_cases(load_card("synthetic_flawed_triage")).cases
    assert [(c.gold, c.recorded().gold) for c in read] == [(c.gold, c.demonstration) for c in made]


def test_corpus_knows_every_word_of_the_cases_and_holds_none_of_them_nor_a_task_format(cases):
    written = [d if isinstance(d, str) else "\n".join(m["content"] for m in d) for d in islice(documents(1), 8000)]
    corpus = "\n".join(written)
    assert all(5 <= len(text.split()) <= 130 for text in written)
    known = words(corpus)
    for file, made in cases.items():
        used = set().union(*(words(" ".join([case.text, *case.gold.values()])) for case in made))
        assert len(used - known) <= 2, (file, used - known)
        assert not [case.case_id for case in made if case.text in corpus]
    form = ("diagnosis:", "findings:", "provider:", "urgency:", "question:", "answer with")
    assert not [phrase for phrase in form if phrase in corpus.lower()]
    # LoRA cannot teach a token that the base never saw: without them most samples had garbled headings
    assert all(corpus.count(f"{word} ") > 5 for word in ("Findings", "Diagnosis", "Provider", "Urgency"))
