import numpy as np
import pandas as pd
import pytest
from made_up import rows, study

from medstudy.evaluation.evaluate import measure
from medstudy.evaluation.scopes import BETWEEN, Cell, Scoped, contrasts_table, metrics_table, variances_table
from medstudy.evaluation.statistics import Estimate
from medstudy.evaluation.verdict import (
    COLUMNS,
    ENOUGH,
    HARMS,
    INVALID,
    NOTHING,
    UNSURE,
    WORTH,
    Rules,
    _judged,
    _over,
    advice,
    published,
    verdict_table,
)

LABELS = {"label": list("abcd")}
SHARES = {"base": 0.1, "sft": 0.5, "sft_more": 0.5, "dpo": 0.8}


def estimated(value, half=0.02):
    return Estimate(value, (half / 1.96) ** 2 / 2, (half / 1.96) ** 2 / 2, 1e6, 1e6, 1e6)


def lines(over_sft, over_more, half=0.02, seeds=3, outcome="accuracy", name="here", scope="cell"):
    pairs = {("dpo", "sft"): over_sft, ("dpo", "sft_more"): over_more}
    return [Scoped(scope, name, outcome, pair, estimated(value, half), 300, seeds, ()) for pair, value in pairs.items()]


def label(of, alpha=0.05):
    rules = Rules(alpha=alpha)
    return {name: _over(outcomes, rules) for (_, name), outcomes in _judged(of, rules).items()}["here"]


@pytest.mark.parametrize(
    ("over_sft", "over_more", "half", "expected"),
    [
        (0.08, 0.05, 0.02, WORTH),
        (0.02, 0.02, 0.01, WORTH),  # proven in both, however small; the sentence says so
        (0.08, 0.0, 0.02, ENOUGH),  # the gain is that of the labels
        (0.08, 0.015, 0.06, UNSURE),
        (0.0, 0.0, 0.03, ENOUGH),
        (0.0, 0.0, 0.04, UNSURE),
        (0.1, -0.1, 0.02, ENOUGH),  # the same labels do better still
        (0.0, -0.15, 0.02, HARMS),  # no better than SFT, and far behind the same labels
        (-0.06, -0.01, 0.02, HARMS),
        (-0.06, 0.06, 0.02, HARMS),
        (-0.02, 0.0, 0.1, UNSURE),
    ],
)
def test_verdict_of_one_outcome(over_sft, over_more, half, expected):
    assert label(lines(over_sft, over_more, half)) == expected


def test_one_training_is_no_verdict():
    for value in (0.08, 0.0, -0.08):
        assert label(lines(value, value, seeds=1)) == UNSURE


def test_a_missing_control_claims_nothing():
    assert label(lines(0.2, 0.2)[:1]) == UNSURE


def test_both_contrasts_count_once_and_holm_is_over_outcomes():
    """p is .015 in the worse of both: enough alone, too much where another outcome is tested beside it."""
    close = 0.02 * 2.43 / 1.96
    assert label(lines(0.08, close)) == WORTH
    assert label(lines(0.08, close) + lines(0.0, 0.0, name="there")) == UNSURE
    assert label(lines(0.08, close) + lines(0.0, 0.0, name="there", scope="task")) == WORTH


def test_a_look_has_its_own_level():
    assert label(lines(0.08, 0.02 * 2.43 / 1.96), alpha=0.02) == UNSURE


@pytest.mark.parametrize(
    ("provider", "urgency", "under", "expected"),
    [(0.1, 0.0, 0.0, WORTH), (0.1, -0.1, 0.0, HARMS), (0.0, 0.0, 0.0, ENOUGH), (0.0, 0.0, 0.1, HARMS)],
)
def test_triage_combines_its_outcomes_and_fewer_under_triaged_is_better(provider, urgency, under, expected):
    values = {"provider_macro_f1": provider, "urgency_macro_f1": urgency, "under_triage": under}
    assert label([row for name, value in values.items() for row in lines(value, value, outcome=name)]) == expected


def cell(task="text_classification", model="m", shares=SHARES, seeds=3, **options):
    tables = [study(shares, n=200, seed=s) for s in range(seeds)]
    return Cell(task, model, measure(tables, task, LABELS, None), tuple(range(seeds)), **options)


def first(table, scope, name):
    return table[(table["scope"] == scope) & (table["name"] == name)].iloc[0]


def test_the_table_has_the_study_its_kinds_its_tasks_and_its_cells_in_this_order():
    cells = [cell(model="a"), cell(model="b"), cell("clinical_reasoning", "a")]
    table = verdict_table(cells)
    assert list(table) == COLUMNS
    assert list(dict.fromkeys(zip(table["scope"], table["name"], strict=True))) == [
        ("study", "study"),
        ("kind", "classification"),
        ("kind", "open-ended"),
        ("kind", BETWEEN),
        ("task", "text_classification"),
        ("task", "clinical_reasoning"),
        ("cell", "text_classification, a"),
        ("cell", "text_classification, b"),
        ("cell", "clinical_reasoning, a"),
    ]
    assert set(table["contrast"]) == {"sft-base", "sft_more-sft", "dpo-sft", "dpo-sft_more"}
    whole = first(table, "study", "study")
    assert (whole["verdict"], whole["n_cases"], whole["n_seeds"]) == (WORTH, 400, 3)
    assert whole["sentence"].startswith("Over the whole study, DPO answered better than SFT and")
    assert first(table, "kind", BETWEEN)["sentence"].endswith("no difference is shown.")
    assert len(metrics_table(cells)) == 2 * 4 * 4 + 4 * 3
    variances = variances_table(cells)
    assert {"task", "outcome", "contrast", "seed_sd", "own_sd", "case_sd", "n_cases", "n_seeds"} <= set(variances)
    assert list(variances_table([])) == list(variances)  # a header also where every cell failed its gates


def test_judged_contrasts_are_the_same_in_both_tables():
    cells = [cell(model="a"), cell(model="b", shares=SHARES | {"dpo": 0.6})]
    contrasts = contrasts_table(cells).query("primary and model == 'b' and contrast == 'dpo-sft'").iloc[0]
    row = verdict_table(cells).query("scope == 'cell' and name.str.endswith('b') and contrast == 'dpo-sft'").iloc[0]
    assert [row[k] for k in ("difference", "low", "high", "p")] == [
        contrasts[k] for k in ("difference", "low", "high", "p")
    ]


def test_a_failed_gate_is_named_and_left_out_of_the_means():
    good, bad = cell(model="a"), cell(model="b", failed_gates=["first loss is ln 2 (seed 1)"])
    table = verdict_table([good, bad])
    refused = first(table, "cell", "text_classification, b")
    assert refused["verdict"] == INVALID and "first loss is ln 2 (seed 1)" in refused["sentence"]
    assert "1 of 2 task x model left out, gates failed" in first(table, "study", "study")["sentence"]
    alone = verdict_table([bad])
    assert set(alone[alone["name"] != BETWEEN]["verdict"]) == {INVALID}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda t: t.assign(status="unparsed", answer="{}"), "most answers of sft could not be read"),
        (lambda t: t.assign(answer='{"label": "z"}'), "SFT answers next to nothing right"),
        (lambda t: t.assign(answer=t["gold"]), "every arm answers nearly everything right"),
        (lambda t: t.assign(gold='{"label": "a"}'), "no test case of more than one class"),
    ],
)
def test_floors_ceilings_and_absent_classes_have_nothing_to_compare(spoil, why):
    tables = [spoil(study(SHARES, n=60, seed=s)) for s in range(3)]
    spoilt = Cell("text_classification", "m", measure(tables, "text_classification", LABELS, None), (0, 1, 2))
    table = verdict_table([spoilt, cell(model="n")])
    row = first(table, "cell", "text_classification, m")
    assert row["verdict"] == NOTHING and why in row["sentence"] and np.isnan(row["difference"])
    assert first(table, "study", "study")["n_cases"] == 200
    assert "1 of 2 task x model left out, nothing to compare" in first(table, "study", "study")["sentence"]
    assert set(verdict_table([spoilt])["verdict"]) == {NOTHING}


def triage(provider, urgency, n=100):
    """Provider always right in ``provider`` of the cases; urgency "later" where "soon" is right in ``urgency``."""
    gold = [{"provider": "nurse" if i % 3 else "doctor", "urgency": "soon" if i % 2 else "later"} for i in range(n)]
    said = [
        dict(g, provider=g["provider"] if i < provider * n else "clerk", urgency="later" if i < urgency * n else "soon")
        for i, g in enumerate(gold)
    ]
    return gold, said


def test_a_gain_that_raises_under_triage_says_so():
    labels = {"provider": ["clerk", "nurse", "doctor"], "urgency": ["later", "soon"]}
    arms = {"sft": (0.5, 0.2), "sft_more": (0.5, 0.2), "dpo": (0.9, 0.32)}
    tables = [pd.concat([rows(arm, *triage(*how)) for arm, how in arms.items()]) for _ in range(3)]
    of = Cell("clinical_triage", "m", measure(tables, "clinical_triage", labels, None), (0, 1, 2))
    sentence = first(verdict_table([of]), "cell", "clinical_triage, m")["sentence"]
    assert "but under-triage rose by 0.060, more than the margin of 0.03" in sentence


def test_a_verdict_beside_a_model_below_the_majority_says_so():
    low = cell(baselines={"majority": {"macro_f1": 0.9}})
    said = "DPO does not beat a baseline that reads nothing"
    assert said in first(verdict_table([low]), "cell", low.name)["sentence"]
    high = cell(baselines={"majority": {"macro_f1": 0.2}})
    assert "baseline" not in "".join(verdict_table([high])["sentence"])
    assert metrics_table([high]).query("arm == 'majority'")["value"].tolist() == [0.2]


def test_advice_is_given_where_a_follow_up_would_probably_decide_and_else_not():
    [clear] = _judged(lines(0.065, 0.065, half=0.06), Rules())["cell", "here"]
    seeds, more = advice(clear, Rules())
    assert seeds >= 5 or more > 1
    [at_the_margin] = _judged(lines(0.03, 0.03, half=0.3), Rules())["cell", "here"]
    assert advice(at_the_margin, Rules()) is None


def test_identical_arms_are_never_worth_it():
    tables = [study({"sft": 0.6}, n=300, seed=s) for s in range(3)]
    tables = [pd.concat([t.assign(arm=arm) for arm in ("sft", "sft_more", "dpo")]) for t in tables]
    same = Cell("text_classification", "m", measure(tables, "text_classification", LABELS, None), (0, 1, 2))
    assert set(verdict_table([same])["verdict"]) == {ENOUGH}


def test_published_values_by_model_family():
    found = published("clinical_reasoning", "meta-llama/Meta-Llama-3-8B-Instruct")
    assert found["value"].tolist() == [0.07, 0.28, 0.36]
    assert published("clinical_reasoning", "builtin/mistral")["value"].tolist() == [0.22, 0.33, 0.40]
    assert published("numeric_classification", "builtin/llama").empty
    assert published("clinical_reasoning", "a-local-folder").empty
