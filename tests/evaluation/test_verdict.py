import pandas as pd
import pytest
from made_up import study

from medstudy.evaluation.evaluate import pooled
from medstudy.evaluation.verdict import (
    ENOUGH,
    HARMS,
    INVALID,
    WORTH,
    Cell,
    contrasts_table,
    metrics_table,
    published,
    verdict,
    verdict_table,
)

LABELS = {"label": list("abcd")}


def row(contrast, difference, half=0.02, p=None, seeds=3, metric="accuracy", seed_share=0.0):
    """A pooled contrast with a symmetric interval of this half-width, partly from the seeds' spread."""
    low, high = difference - half, difference + half
    p = (0.0001 if low > 0 or high < 0 else 0.5) if p is None else p
    return {
        "contrast": contrast,
        "metric": metric,
        "primary": True,
        "difference": difference,
        "low": low,
        "high": high,
        "p": p,
        "p_holm": p,
        "n": 300,
        "seeds": seeds,
        "by_seed": [difference] * seeds,
        "error": half / 1.96,
        "seed_error": seed_share**0.5 * half / 1.96,
        "equivalence_low": difference - 0.84 * half,
        "equivalence_high": difference + 0.84 * half,
        "smallest_detectable": 2.8 * half / 1.96,
    }


def both(over_sft, over_more, **options):
    return [row("dpo-sft", over_sft, **options), row("dpo-sft_more", over_more, **options)]


def test_worth_it_needs_both_contrasts():
    decided = verdict(both(0.08, 0.05))
    assert decided.label == WORTH
    assert "+0.080 [+0.060, +0.100] over SFT" in decided.sentence
    assert "300 cases, 3 seeds" in decided.sentence


def test_a_gain_that_more_sft_brings_too_is_not_dpos():
    decided = verdict(both(0.08, 0.00))
    assert decided.label == ENOUGH
    assert "SFT continued as long" in decided.sentence


def test_a_gain_has_to_survive_holm():
    contrasts = both(0.08, 0.05)
    contrasts[1]["p_holm"] = 0.06
    assert verdict(contrasts).label.startswith("inconclusive")


def test_one_training_is_no_verdict_for_the_method():
    assert verdict(both(0.08, 0.05, seeds=1)).label == "inconclusive: more seeds needed"


def test_where_trainings_differ_more_than_cases_it_asks_for_seeds():
    """Half-width .1 is an error of .051, all from the seeds; to find .06 takes .06 / 2.80 = .0214."""
    decided = verdict(both(0.06, 0.06, half=0.1, seed_share=1.0))
    assert decided.label == "inconclusive: about 15 more seeds"  # 3 (.051 / .0214)^2 - 3
    # 65 seeds are too many, and no number of cases makes up for them
    assert verdict(both(0.03, 0.03, half=0.1, seed_share=1.0)).label.endswith("more seeds and more cases needed")


def test_equivalence_needs_the_whole_90_percent_interval_within_the_margin():
    assert verdict(both(0.0, 0.0, half=0.03)).label == ENOUGH
    assert verdict(both(0.0, 0.0, half=0.04)).label.startswith("inconclusive")
    assert verdict(both(0.0, 0.0, half=0.04), margin=0.05).label == ENOUGH
    # possibly worse by more than the margin
    unsure = [row("dpo-sft", -0.03, half=0.05), row("dpo-sft_more", 0.02, half=0.1)]
    assert verdict(unsure).label.startswith("inconclusive")
    # surely above 0, and surely too small to matter
    assert verdict(both(0.015, 0.015, half=0.01)).label == ENOUGH


def test_worse_than_more_sft_is_not_enough_for_sft_is_enough():
    unsure = [row("dpo-sft", -0.1, half=0.15), row("dpo-sft_more", -0.12, half=0.13)]
    assert verdict(unsure).label.startswith("inconclusive")


def test_harm():
    assert verdict(both(-0.06, -0.01)).label == HARMS
    # an interval of few discordant cases below 0 that the exact test does not confirm
    assert verdict(both(-0.06, -0.06, p=0.125)).label != HARMS


def test_inconclusive_says_how_many_cases():
    decided = verdict(both(0.04, 0.04, half=0.06))
    # error .0306, wanted .04: 300 * (2.80 * .0306 / .04)^2 = 1378 in all
    assert decided.missing == pytest.approx(1080, abs=20)
    assert decided.label == f"inconclusive: about {decided.missing} more cases"
    assert verdict(both(0.04, 0.04, half=0.06), family=20).missing > decided.missing


def test_without_the_control_arm_no_gain_is_claimed():
    decided = verdict([row("dpo-sft", 0.2)])
    assert decided.label.startswith("inconclusive")
    assert "sft_more" in decided.sentence


def test_a_failed_gate_makes_it_invalid_and_is_named():
    decided = verdict(both(0.08, 0.05), failed_gates=["first loss is ln 2 (seed 1)"])
    assert decided.label == INVALID
    assert "first loss is ln 2 (seed 1)" in decided.sentence
    assert verdict([]).label == INVALID


def test_no_interval_no_verdict():
    contrasts = both(0.08, 0.05)
    contrasts[0] |= {"low": None, "high": None}
    assert verdict(contrasts).label.startswith("inconclusive")


@pytest.mark.parametrize(
    ("provider", "urgency", "label"),
    [
        (0.1, 0.0, WORTH),
        (0.1, -0.1, HARMS),
        (0.0, 0.0, ENOUGH),
        (0.0, None, "inconclusive"),
        (0.1, None, WORTH),
    ],
)
def test_triage_combines_two_outcomes(provider, urgency, label):
    def outcome(difference, metric):
        if difference is None:
            return both(0.02, 0.02, half=0.1, metric=metric)
        return both(difference, difference, metric=metric)

    decided = verdict(outcome(provider, "provider_macro_f1") + outcome(urgency, "urgency_macro_f1"))
    assert decided.label.startswith(label)
    assert "provider macro-F1: " in decided.sentence
    assert "urgency macro-F1: " in decided.sentence


def cell(task, model, shares, **options):
    tables = {s: study(shares, seed=s) for s in range(2)}
    return Cell(task, model, *pooled(tables, "text_classification", LABELS, None, resamples=300), seeds=2, **options)


def test_holm_runs_over_the_whole_study_and_only_where_a_claim_may_rest_on_it():
    def raw(name, p, **other):
        return {key: value for key, value in row(name, 0.1, p=p).items() if key != "p_holm"} | other

    beside = [raw("few_shot-base", 1e-9), raw("dpo-sft", 1e-9, metric="unparsed", primary=False)]
    names = ("sft-base", "dpo-sft", "dpo-sft_more")
    found = {"a": (0.01, 0.04, 0.03), "b": (0.005, 0.5, 1)}
    cells = [Cell("t", m, {}, [*map(raw, names, p_values), *beside], 3) for m, p_values in found.items()]
    table = contrasts_table(cells).dropna(subset="p_holm")
    # sorted .005 .01 .03 .04 .5 1 times 6 5 4 3 2 1, made monotone
    assert table["p_holm"].tolist() == pytest.approx([0.05, 0.12, 0.12, 0.03, 1, 1])
    assert set(table["contrast"]) == set(names) and set(table["metric"]) == {"accuracy"}


def test_identical_arms_are_never_worth_it():
    tables = {s: study({"sft": 0.6}, n=300, seed=s) for s in range(3)}
    for s, table in tables.items():
        tables[s] = pd.concat([table.assign(arm=arm) for arm in ("sft", "sft_more", "dpo")])
    aa = Cell("t", "m", *pooled(tables, "text_classification", LABELS, None, resamples=300), seeds=3)
    assert verdict_table([aa])["verdict"].tolist() == [ENOUGH]


def test_tables_of_a_study():
    shares = {"base": 0.1, "sft": 0.5, "sft_more": 0.5, "dpo": 0.8}
    good = cell(
        "text_classification", "builtin/llama", shares, cost={"pairs": 400, "pair_tokens": 9000, "dpo_seconds": 35.0}
    )
    bad = cell("text_classification", "builtin/mistral", shares, failed_gates=["DPO moved"])
    table = verdict_table([good, bad])
    assert table["verdict"].tolist() == [WORTH, INVALID]
    assert table["gates"].tolist() == ["passed", "failed: DPO moved"]
    expected = ["task", "model", "outcome", "n_cases", "n_seeds", "sft", "sft_more", "dpo"]
    for contrast in ("dpo_sft", "dpo_sft_more"):
        expected += [f"{contrast}_{key}" for key in ("difference", "low", "high", "p_holm")]
    assert list(table) == [
        *expected,
        "smallest_detectable",
        "gates",
        "verdict",
        "sentence",
        "pairs",
        "pair_tokens",
        "dpo_seconds",
        "margin",
    ]
    assert table["dpo_sft_difference"][0] == pytest.approx(table["dpo"][0] - table["sft"][0], abs=1e-5)
    assert len(metrics_table([good, bad])) == 2 * 4 * 4
    assert set(contrasts_table([good])["contrast"]) == {"sft-base", "dpo-sft", "dpo-sft_more"}


def test_published_values_by_model_family():
    rows = published("clinical_reasoning", "meta-llama/Meta-Llama-3-8B-Instruct")
    assert rows["value"].tolist() == [0.07, 0.28, 0.36]
    assert published("clinical_reasoning", "builtin/mistral")["value"].tolist() == [0.22, 0.33, 0.40]
    assert published("numeric_classification", "builtin/llama").empty
    assert published("clinical_reasoning", "a-local-folder").empty
