"""The shipped cards on real files, where the folder named by MEDSTUDY_REAL_DATA has them."""

import os
from collections import Counter
from pathlib import Path

import pytest
from made_up import asked

from medstudy.data.audit import audit
from medstudy.data.card import load_card
from medstudy.data.load import load_cases
from medstudy.data.splits import split_cases
from medstudy.params import resolve
from medstudy.studies import load_study
from medstudy.tasks import get_task
from medstudy.training.preferences import make_pairs

ROOT = os.environ.get("MEDSTUDY_REAL_DATA", "")
pytestmark = pytest.mark.skipif(not ROOT or not Path(ROOT).is_dir(), reason="MEDSTUDY_REAL_DATA is not set")


def load(name):
    loaded = load_cases(load_card(name), ROOT)
    assert len(loaded.cases) + len(loaded.dropped) == loaded.rows_in
    return loaded


def answers(loaded, outcome="label"):
    return dict(Counter(case.gold[outcome] for case in loaded.cases))


def missing(loaded):
    return dict(Counter(name for case in loaded.cases for name in case.details["missing"]))


@pytest.mark.parametrize("name", ["ktas", "medical_abstracts", "medqa", "mts_dialog", "pima", "uci_heart"])
def test_splits_share_no_group_and_the_audit_is_clean(name):
    loaded = load(name)
    splits = split_cases(loaded.cases, asked(150, 60, 250, 0, 0))
    table = audit(loaded, splits).set_index("measure")
    assert table.loc["groups in another split (must be 0)"].tolist()[2:] == [0, 0, 0, 0]
    assert table.loc["cases with the text of a training case"].tolist()[4:] == [0, 0]
    assert not any("\r" in case.text for case in loaded.cases)


@pytest.mark.parametrize("name", ["public", "paper"])
def test_a_study_that_ships_has_the_cases_it_asks_for(name):
    """`params/paper` asked for 1,200 of the 768 women of Pima and could not start."""
    study = load_study(Path("params", name))
    for run in (study.run(task, study.models[0], 0) for task in study.tasks):
        wanted = [run.n_train, run.n_prefer, run.n_valid, run.n_test]
        assert list(map(len, vars(split_cases(load(run.data).cases, run)).values())) == wanted


def test_ktas():
    loaded = load("ktas")
    assert (loaded.rows_in, len(loaded.cases)) == (1267, 1258)
    assert {d.reason for d in loaded.dropped} == {"no answer for 'provider' in column 'Disposition'"}
    assert answers(loaded, "provider") == {
        "home": 797 + 26, "ward": 373, "intensive care or surgery": 8 + 22, "other hospital": 32,
    }  # fmt: skip
    # 9 patients died: 7 of level 1, one each of levels 2 and 3 (26/220/487/459/75 in the source)
    assert answers(loaded, "urgency") == {
        "resuscitation": 19, "emergency": 219, "urgent": 486, "less urgent": 459, "non-urgent": 75,
    }  # fmt: skip
    assert missing(loaded)["Chief_complain"] == 21
    # nor what was written after triage: a diagnosis of the source is in no text
    assert not any(s in case.text for s in ("??", "#BO", "Corneal abrasion") for case in loaded.cases)
    assert len(load_card("ktas").columns.exclude) == 7


def test_ktas_nurses_are_rejected_answers_where_the_experts_disagree():
    cases = load("ktas").cases
    worse = [c for c in cases if "rejected" in c.details]
    # 186 in the source, of whom some died and are left out
    assert 180 <= len(worse) <= 186
    order = load_card("ktas").labels["urgency"]
    steps = [order.index(c.details["rejected"]["urgency"]) - order.index(c.gold["urgency"]) for c in worse]
    assert 0 not in steps and (sum(s > 0 for s in steps), sum(s < 0 for s in steps)) != (0, 0)
    task = get_task("clinical_triage", load_card("ktas"))
    asked = {"task": "clinical_triage", "data": "ktas", "pair_source": "card"}
    assert len(make_pairs(resolve(asked), task, cases).pairs) == len(worse)


def test_pima():
    loaded = load("pima")
    assert loaded.rows_in == len(loaded.cases) == 768
    assert answers(loaded) == {"no": 500, "yes": 268}
    assert missing(loaded) == {"Glucose": 5, "BloodPressure": 35, "SkinThickness": 227, "Insulin": 374, "BMI": 11}


def test_uci_heart_trains_on_one_hospital_and_tests_on_three():
    loaded = load("uci_heart")
    sites = Counter(f"{case.details['site'].removeprefix('processed.')} {case.split}" for case in loaded.cases)
    assert sites == {"cleveland train": 303, "hungarian test": 294, "switzerland test": 123, "va test": 200}
    assert sum(c.gold["label"] == "no" for c in loaded.cases if c.split == "train") == 164
    chol = Counter(c.details["site"] for c in loaded.cases if c.details["features"]["chol"] is None)
    assert chol["processed.switzerland"] == 123
    splits = split_cases(loaded.cases, asked(0, 60, 0, 0, 0))
    assert list(map(len, vars(splits).values())) == [242, 1, 60, 617]


def test_medical_abstracts():
    loaded = load("medical_abstracts")
    assert (loaded.rows_in, len(loaded.cases)) == (2000, 1890)
    assert Counter(d.reason for d in loaded.dropped) == {"same text, different answers": 110}
    assert answers(loaded)["general pathological conditions"] == 622


def test_medqa():
    loaded = load("medqa")
    assert loaded.rows_in == len(loaded.cases) == 1273
    told = [(case.details["options"].items(), case.gold["diagnosis"]) for case in loaded.cases]
    letters = Counter(next(k for k, v in options if v.strip() == right) for options, right in told)
    assert letters == {"A": 353, "B": 309, "C": 346, "D": 265}


def test_mts_dialog():
    loaded = load("mts_dialog")
    assert loaded.rows_in == 1701
    splits = Counter(case.split for case in loaded.cases)
    assert splits["test"] == 400 and splits["validation"] in (99, 100) and sum(splits.values()) == 1697
    assert {d.reason for d in loaded.dropped} == {"its group (patient or text) is in a later split too"}
