"""The data card: those that ship, and those that must be refused."""

import copy
import shutil

import pytest
import yaml
from pydantic import ValidationError

from demo.medicine import PROVIDERS, URGENCIES
from medstudy.data.card import CARDS, DataCard, load_card
from medstudy.data.cases import DataError
from medstudy.studies import load_study

BASE = {
    "name": "ward",
    "title": "A ward",
    "task": "clinical_triage",
    "question": "Who, and how soon?",
    "labels": {"provider": ["nurse", "doctor"], "urgency": ["later", "now"]},
    "load": {"kind": "files", "format": "csv", "files": [{"path": "ward.csv"}]},
    "columns": {
        "text": "Complaint: {complaint}\n{fields}",
        "fields": [{"column": "pulse", "unit": "/min"}],
        "gold": {"provider": {"column": "seen_by"}, "urgency": {"column": "level", "map": {"1": "now", "2": "later"}}},
        "exclude": ["diagnosis"],
    },
}
MISSING = object()
#: Cards of data that only those may have who signed for it.
CREDENTIALED = {"mimic_iv_ed", "mimic_iv_note", "n2c2_smoking"}


def edited(path, value):
    """A copy of BASE with the value at a dotted path replaced, added or (MISSING) removed."""
    card = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    part = card
    for key in parents:
        part = part[int(key)] if isinstance(part, list) else part[key]
    if value is MISSING:
        del part[last]
    else:
        part[last] = value
    return card


def write(folder, card):
    path = folder / "ward.yaml"
    path.write_text(card if isinstance(card, str) else yaml.safe_dump(card), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.yaml")), ids=lambda p: p.stem)
def test_cards_that_ship(path):
    card = load_card(path.stem)
    assert card.name == path.stem
    assert card.licence and card.title and card.description
    assert card.shareable == (card.name not in CREDENTIALED)
    assert card.synthetic == path.stem.startswith("synthetic_")
    assert card.synthetic or card.citation


def test_every_task_has_a_synthetic_card():
    # triage has a second one: the same messages with flawed records
    tasks = [load_card(p.stem).task for p in CARDS.glob("synthetic_*.yaml") if p.stem != "synthetic_flawed_triage"]
    assert len(tasks) == len(set(tasks)) and set(load_study("params/demo").tasks) <= set(tasks)
    assert load_card("synthetic_messages").labels == {"provider": list(PROVIDERS), "urgency": list(URGENCIES)}


def test_a_card_is_private_frozen_and_keeps_yes_and_no_as_text(tmp_path):
    rest = {k: BASE[k] for k in ("name", "title", "question", "load")} | {"task": "text_classification"}
    labels = "labels: {label: [no, yes]}\npositive: yes\n"
    columns = "columns: {text: '{note}', gold: {label: {column: uti, map: {0: no, 01: yes}}}}\n"
    card = load_card(write(tmp_path, labels + columns + yaml.safe_dump(rest)))
    assert card.labels == {"label": ["no", "yes"]} and card.positive == "yes"
    assert card.columns.gold["label"].map == {"0": "no", "01": "yes"}
    assert not card.shareable and not card.synthetic
    with pytest.raises(ValidationError, match="frozen"):
        card.shareable = True


BROKEN = {
    "unknown key": (edited("licens", "x"), ["unknown key 'licens'", "did you mean 'licence'"]),
    "unknown key deep down": (edited("columns.fields.0.units", "x"), ["columns.fields.0", "did you mean 'unit'"]),
    "missing key": (edited("question", MISSING), ["'question' is missing"]),
    "unknown task": (edited("task", "triage"), ["task = 'triage'", "clinical_triage"]),
    "no files": (edited("load.files", []), ["load.files.files", "at least 1"]),
    "unknown split": (edited("load.files.0.split", "dev"), ["= 'dev'", "'validation'"]),
    "no training file": (edited("load.files.0.split", "test"), ["no file is for training"]),
    "some with split": (edited("load.files", [{"path": "a", "split": "train"}, {"path": "b"}]), ["every file"]),
    "outcome missing": (edited("columns.gold.urgency", MISSING), ["columns.gold", "urgency"]),
    "one label": (edited("labels.urgency", ["now"]), ["labels.urgency", "two labels or more"]),
    "label misspelt in a map": (edited("columns.gold.urgency.map.1", "nov"), ["'nov'", "did you mean 'now'"]),
    "unknown positive": (edited("positive", "yes"), ["positive 'yes'"]),
    "leak column in the text": (edited("columns.text", "{diagnosis} {fields}"), ["'diagnosis' gives the answer away"]),
    "leak column in a field": (edited("columns.exclude", ["pulse"]), ["'pulse' gives the answer away"]),
    "patient in the text": (edited("columns.group_id", "pulse"), ["'pulse' names a patient or case"]),
    "answer in the text": (edited("columns.text", "{level}\n{fields}"), ["'level' gives the answer away"]),
    "fields without their place": (edited("columns.text", "{complaint}"), ["{fields}"]),
    "the same text for all": (edited("columns", BASE["columns"] | {"text": "Hm", "fields": []}), ["read the same"]),
    "a number that is not declared": (
     edited("columns", BASE["columns"] | {"fields": [{"column": "pulse"}], "gold": {"label": {"column": "ill"}}})
     | {"task": "numeric_classification", "labels": {"label": ["a", "b"]}},
     ["numeric_classification needs fields with unit, decimals or map; without: ['pulse']"]),
    "not YAML": ("name: [", ["not valid YAML", "line"]),
    "rejected answer to another question": (edited("columns.rejected", {"level": {"column": "nurse"}}),
     ["columns.rejected.level", "provider, urgency"]),
    "rejected label misspelt": (edited("columns.rejected",
     {"urgency": {"column": "nurse", "map": {"1": "nov"}}}), ["columns.rejected.urgency.map", "did you mean 'now'"]),
    "splits of the files and of a column": (edited("load.files.0.split", "train")
     | {"columns": BASE["columns"] | {"split": {"column": "site"}}}, ["columns.split", "keep one"]),
    "key given twice": ("name: a\nname: b\n", ["a key is given twice (line 2)"]),
}  # fmt: skip


@pytest.mark.parametrize(("card", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_cards_are_refused_and_the_fault_is_named(tmp_path, card, said):
    path = write(tmp_path, card)
    with pytest.raises(DataError) as error:
        load_card(path)
    assert all(words in str(error.value) for words in [str(path), *said]), str(error.value)


@pytest.mark.parametrize(
    "fault",
    [
        "columns:\n  missing: {uti: [see Mrs. Grobblestone\n",
        "map:\n  Grobblestone: yes\n  Grobblestone: no\n",
        "missing: *Grobblestone\n",
        "- Grobblestone\n\x07",
        edited("columns.missing", {"pulse": "Grobblestone"}),
        edited("columns.gold.urgency.map", {"Grobblestone": ["now"]}),
    ],
)
def test_faults_of_a_card_show_none_of_the_values_that_it_quotes(tmp_path, fault):
    """They may be cells of patients, and whether the card is shareable is not known yet."""
    path = tmp_path / "card.yaml"
    path.write_text(fault if isinstance(fault, str) else yaml.safe_dump(fault))
    with pytest.raises(DataError, match=r"line \d|position \d|columns\.") as error:
        load_card(path)
    assert "Grobble" not in str(error.value)


def test_several_faults_are_all_listed(tmp_path):
    with pytest.raises(DataError) as error:
        load_card(write(tmp_path, edited("shareable", "maybe") | {"title": ["x"]}))
    shareable, title = sorted(str(error.value).splitlines())
    assert "shareable = 'maybe'" in shareable and "title = ['x']: " in title


def test_a_task_that_has_a_notebook_and_no_class_is_said(tmp_path, monkeypatch):
    """It was a KeyError."""
    (tmp_path / "params").mkdir()
    shutil.copytree("notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    shutil.copy("notebooks/clinical_triage.ipynb", tmp_path / "notebooks" / "readmission.ipynb")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationError, match="readmission has a notebook and no class"):
        DataCard.model_validate(BASE | {"task": "readmission"})
