import json

import numpy as np
import pandas as pd
import pytest
from made_up import labelled, study

from medstudy.evaluation.evaluate import contrasts_view, evaluate, pooled, validate_predictions
from medstudy.evaluation.metrics import PredictionsError
from medstudy.evaluation.statistics import exact_mcnemar, wilson
from medstudy.training.gates import Gate, gates_table

LABELS = {"label": list("abcd")}
SHARES = {"base": 0.1, "sft": 0.6, "sft_more": 0.65, "dpo": 0.8}


def run(predictions, **options):
    return evaluate(predictions, "text_classification", LABELS, None, resamples=300, **options)


def contrast(contrasts, name, metric):
    return next(r for r in contrasts if r["contrast"] == name and r["metric"] == metric)


def test_shapes_of_the_contract():
    metrics, contrasts = run(study(SHARES))
    assert list(metrics) == ["base", "sft", "sft_more", "dpo"]
    assert set(metrics["dpo"]) == {"macro_f1", "accuracy", "accuracy_parsed", "unparsed"}
    assert {"value", "low", "high", "n"} <= set(metrics["dpo"]["macro_f1"])
    assert {row["contrast"] for row in contrasts} == {"sft-base", "dpo-sft", "dpo-sft_more"}
    assert {"contrast", "metric", "difference", "low", "high", "p", "test", "n"} <= set(contrasts[0])
    json.dumps([metrics, contrasts], allow_nan=False)


def test_values_and_intervals_of_shares_are_wilsons():
    metrics, _ = run(study(SHARES))
    cell = metrics["dpo"]["accuracy"]
    assert cell["value"] == 0.8
    assert (cell["low"], cell["high"]) == pytest.approx((wilson(96, 120).low, wilson(96, 120).high), rel=1e-5)


def test_accuracy_contrast_is_mcnemar_on_the_discordant_cases():
    gold = ["a"] * 20
    sft = labelled("label", gold, ["a"] * 5 + ["b"] * 15, "sft")
    dpo = labelled("label", gold, ["b"] * 1 + ["a"] * 12 + ["b"] * 7, "dpo")
    row = contrast(run(pd.concat([sft, dpo]))[1], "dpo-sft", "accuracy")
    assert (row["gained"], row["lost"], row["discordant"]) == (8, 1, 9)
    assert row["difference"] == pytest.approx(7 / 20)
    assert row["p"] == pytest.approx(exact_mcnemar(8, 1))
    assert row["test"] == "exact McNemar"


def test_a_clear_difference_is_found_and_rows_may_come_in_any_order():
    predictions = study(SHARES)
    _, contrasts = run(predictions)
    row = contrast(contrasts, "sft-base", "macro_f1")
    assert row["low"] > 0
    assert row["p"] < 0.01
    assert run(predictions.sample(frac=1, random_state=1))[1] == contrasts


def test_identical_arms_differ_by_nothing_and_claim_no_more_than_n_allows():
    row = contrast(run(study({"sft": 0.6}).pipe(_copied, "sft", "dpo"))[1], "dpo-sft", "macro_f1")
    assert (row["difference"], row["p"]) == (0, 1)
    assert row["low"] == pytest.approx(-wilson(0, 120).high, rel=1e-5)


def _copied(predictions, arm, name):
    return pd.concat([predictions, predictions[predictions["arm"] == arm].assign(arm=name)])


def test_a_model_that_answers_nothing_scores_0_of_all_cases():
    gold = list("abcd") * 10
    silent, right = labelled("label", gold, [""] * 40, "base"), labelled("label", gold, gold, "sft")
    metrics, contrasts = run(pd.concat([silent, right]))
    assert metrics["base"]["macro_f1"]["value"] == 0
    assert metrics["base"]["macro_f1"]["n"] == metrics["base"]["accuracy"]["n"] == 40
    assert metrics["base"]["unparsed"]["value"] == 1
    assert metrics["base"]["accuracy_parsed"] == {
        "value": None, "low": None, "high": None, "n": 0, "note": "no case is counted: no interval"
    }  # fmt: skip
    assert metrics["sft"]["macro_f1"]["value"] == 1  # every answer right: BCa is undefined
    assert metrics["sft"]["macro_f1"]["low"] < 1
    assert contrast(contrasts, "sft-base", "macro_f1")["p"] < 0.01


def test_repeated_seeds_add_no_certainty():
    one = study(SHARES)
    _, single = pooled({0: one}, "text_classification", LABELS, None, resamples=300)
    _, thrice = pooled(dict.fromkeys(range(3), one), "text_classification", LABELS, None, resamples=300)
    for key in ("difference", "low", "high", "p", "n"):
        assert contrast(thrice, "dpo-sft", "macro_f1")[key] == contrast(single, "dpo-sft", "macro_f1")[key]
    assert contrast(thrice, "dpo-sft", "accuracy")["test"] == "approximate randomisation"


def test_different_seeds_are_averaged_and_shown():
    by_seed = {s: study(SHARES | {"dpo": share}, seed=s) for s, share in enumerate((0.7, 0.8, 0.9))}
    metrics, contrasts = pooled(by_seed, "text_classification", LABELS, None, resamples=300)
    assert metrics["dpo"]["accuracy"]["value"] == pytest.approx(0.8)
    row = contrast(contrasts, "dpo-sft", "accuracy")
    assert row["by_seed"] == pytest.approx([0.1, 0.2, 0.3])
    assert row["seeds"] == 3


def test_cases_of_a_group_are_drawn_together():
    single = study(SHARES, n=60)
    twin = single.assign(case_id=single["case_id"] + "-twin")
    whole, lone = pd.concat([single, twin]), pd.concat([single, twin.assign(group_id=twin["case_id"])])
    grouped = contrast(run(whole)[1], "dpo-sft", "accuracy")
    assert grouped["units"] == 60
    assert grouped["n"] == 120
    assert grouped["error"] == contrast(run(single)[1], "dpo-sft", "accuracy")["error"]
    assert grouped["error"] > 1.2 * contrast(run(lone)[1], "dpo-sft", "accuracy")["error"]
    assert grouped["test"] == "approximate randomisation"


def test_same_seed_same_numbers():
    assert run(study(SHARES), seed=4) == run(study(SHARES), seed=4)
    assert run(study(SHARES), seed=4) != run(study(SHARES), seed=5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.drop(columns="status"), "status"),
        (lambda p: p.iloc[:0], "no rows"),
        (lambda p: p.iloc[1:], "different cases.*case-0"),
        (lambda p: pd.concat([p, p.iloc[:1]]), "twice"),
        (lambda p: p.assign(arm=p["arm"].replace("dpo", "dpo2")), "dpo2"),
        (lambda p: p.assign(status="fine"), "fine"),
        (lambda p: p.assign(gold=["{}", *p["gold"].iloc[1:]]), "several golds"),
        (lambda p: p.assign(group_id=["other", *p["group_id"].iloc[1:]]), "several golds or groups"),
    ],
)
def test_unfair_tables_are_refused(spoil, message):
    predictions = study(SHARES, n=10)
    validate_predictions(predictions)
    with pytest.raises(PredictionsError, match=message):
        validate_predictions(spoil(predictions))


def test_seeds_with_other_arms_or_other_golds_are_refused():
    whole = study(SHARES, n=10)
    with pytest.raises(PredictionsError, match="different arms"):
        pooled({0: whole, 1: whole[whole["arm"] != "dpo"]}, "text_classification", LABELS, None)
    swapped = whole.assign(gold=json.dumps({"label": "a"}))
    with pytest.raises(PredictionsError, match="several golds"):
        pooled({0: whole, 1: swapped}, "text_classification", LABELS, None)


def test_scores_and_length_of_summaries():
    n = 60
    rng = np.random.default_rng(0)
    parts = []
    for arm, lift, words in (("sft", 0.0, 20.0), ("dpo", 0.2, 30.0)):
        part = labelled("summary", ["g"] * n, ["s"] * n, arm)
        scores = {f"score_{m}": 0.4 + lift + 0.3 * rng.random(n) for m in ("factual_f1", "rouge1", "rouge2", "rougeL")}
        parts.append(part.assign(**scores, score_length=words + rng.integers(0, 3, n)))
    metrics, contrasts = evaluate(pd.concat(parts), "summarization", {}, None, resamples=300)
    assert contrast(contrasts, "dpo-sft", "factual_f1")["low"] > 0.1
    assert contrast(contrasts, "dpo-sft", "length")["difference"] == pytest.approx(10, abs=0.5)
    assert metrics["dpo"]["length"]["high"] > 30


def test_what_a_reader_sees_has_no_p_of_zero_and_no_text_cut_off():
    row = {"contrast": "dpo-sft", "metric": "f1", "difference": 0.12345, "low": 0.1, "high": 0.2, "n": 9}
    shown = contrasts_view([row | {"p": p, "test": "t"} for p in (0.00004, 0.0312, None)])
    assert shown["p"].tolist() == ["< 0.001", "0.031", ""]
    assert shown["difference"].tolist() == [0.123] * 3
    long = {"rows": {"sft": "100 of 100", "dpo": "38 of 38"}, "stages": ["a" * 30, "b" * 30]}
    page = gates_table([Gate("no row lost", True, long, "all"), Gate("moved", False, 0.5, "more")]).to_html()
    assert f"rows: sft: 100 of 100; dpo: 38 of 38; stages: {'a' * 30}, {'b' * 30}" in page
    assert "passed" in page and "FAILED" in page
