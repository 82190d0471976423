import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import labelled, rows, study
from scipy.stats import t

from medstudy.evaluation.evaluate import contrasts_view, evaluate, measure, values, values_table
from medstudy.evaluation.metrics import PredictionsError
from medstudy.evaluation.predictions import first_look, predictions_table, show_counts, validate_predictions
from medstudy.evaluation.statistics import estimates
from medstudy.tasks import get_task
from medstudy.training.gates import Gate, gates_table

LABELS = {"label": list("abcd")}
SHARES = {"base": 0.1, "sft": 0.6, "sft_more": 0.65, "dpo": 0.8}


def run(predictions):
    return evaluate(predictions, "text_classification", LABELS, None)


def contrast(contrasts, name, metric):
    return next(r for r in contrasts if r["contrast"] == name and r["metric"] == metric)


def test_shapes_of_the_contract():
    metrics, contrasts = run(study(SHARES))
    assert list(metrics) == ["base", "sft", "sft_more", "dpo"]
    assert set(metrics["dpo"]) == {"macro_f1", "accuracy", "accuracy_parsed", "unparsed"}
    assert {"value", "low", "high", "n"} <= set(metrics["dpo"]["macro_f1"])
    assert {row["contrast"] for row in contrasts} == {"sft-base", "sft_more-sft", "dpo-sft", "dpo-sft_more"}
    assert {"contrast", "metric", "difference", "low", "high", "p", "test", "n"} <= set(contrasts[0])
    json.dumps([metrics, contrasts], allow_nan=False)


def test_values_and_intervals_of_shares_are_wilsons():
    metrics, _ = run(study(SHARES))
    cell = metrics["dpo"]["accuracy"]
    assert cell["value"] == 0.8
    assert (cell["low"], cell["high"]) == pytest.approx((0.7196, 0.8618), abs=1e-4)


def test_accuracy_contrast_is_mcnemar_on_the_discordant_cases():
    gold = ["a"] * 20
    sft = labelled("label", gold, ["a"] * 5 + ["b"] * 15, "sft")
    dpo = labelled("label", gold, ["b"] * 1 + ["a"] * 12 + ["b"] * 7, "dpo")
    row = contrast(run(pd.concat([sft, dpo]))[1], "dpo-sft", "accuracy")
    assert (row["gained"], row["lost"], row["discordant"]) == (8, 1, 9)
    assert row["difference"] == pytest.approx(7 / 20)
    assert row["p"] == pytest.approx(2 * (1 + 9) / 2**9)  # 0 or 1 of 9 discordant cases, on either side
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
    assert row["high"] == -row["low"] > 1.9 * 2**0.5 / 120


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
        "value": None, "low": None, "high": None, "n": 0, "note": "no case is counted, or one group: no interval"
    }  # fmt: skip
    assert metrics["sft"]["macro_f1"]["value"] == 1  # every answer right
    assert metrics["sft"]["macro_f1"]["low"] < 1
    assert contrast(contrasts, "sft-base", "macro_f1")["p"] < 0.01


def test_repeated_seeds_add_no_certainty():
    one, thrice = (measure([study(SHARES)] * seeds, "text_classification", LABELS, None)[0] for seeds in (1, 3))
    [alone], [again] = (estimates([m.line(("dpo", "sft"))]) for m in (one, thrice))
    assert (alone.value, alone.error) == pytest.approx((again.value, again.error), rel=0.06)


def test_different_seeds_are_averaged_and_shown():
    tables = [study(SHARES | {"dpo": share}, seed=s) for s, share in enumerate((0.7, 0.8, 0.9))]
    measured = measure(tables, "text_classification", LABELS, None)
    assert values(measured)["dpo"]["accuracy"]["value"] == pytest.approx(0.8)
    accuracy = next(m for m in measured if m.metric.name == "accuracy")
    row = accuracy.row(("dpo", "sft"))
    assert row["by_seed"] == pytest.approx([0.1, 0.2, 0.3])
    assert (row["seeds"], row["test"]) == (3, "t over seeds and cases")


def test_cases_of_a_group_are_left_out_together():
    single = study(SHARES, n=60)
    twin = single.assign(case_id=single["case_id"] + "-twin")
    whole, lone = pd.concat([single, twin]), pd.concat([single, twin.assign(group_id=twin["case_id"])])
    grouped = contrast(run(whole)[1], "dpo-sft", "macro_f1")
    assert (grouped["units"], grouped["n"], grouped["test"]) == (60, 120, "t over cases")
    assert grouped["low"] == contrast(run(single)[1], "dpo-sft", "macro_f1")["low"]
    assert grouped["low"] < contrast(run(lone)[1], "dpo-sft", "macro_f1")["low"]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).random(50)
    table = labelled("summary", ["g"] * 50, ["s"] * 50).assign(
        **{f"score_{m}": values for m in ("factual_f1", "rouge1", "rouge2", "rougeL", "length")}
    )
    line = measure([table], "summarization", {}, None)[0].line("sft")
    assert line.case_variance - 2 / 50**2 == pytest.approx(values.var(ddof=1) / 50)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.drop(columns="status"), "status"),
        (lambda p: p.iloc[:0], "no rows"),
        (lambda p: p.iloc[1:], "case-0.*different cases"),
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
        measure([whole, whole[whole["arm"] != "dpo"]], "text_classification", LABELS, None)
    swapped = whole.assign(gold=json.dumps({"label": "a"}))
    with pytest.raises(PredictionsError, match="several golds"):
        measure([whole, swapped], "text_classification", LABELS, None)


def test_scores_and_length_of_summaries():
    n = 60
    rng = np.random.default_rng(0)
    parts = []
    for arm, lift, words in (("sft", 0.0, 20.0), ("dpo", 0.2, 30.0)):
        part = labelled("summary", ["g"] * n, ["s"] * n, arm)
        scores = {f"score_{m}": 0.4 + lift + 0.3 * rng.random(n) for m in ("factual_f1", "rouge1", "rouge2", "rougeL")}
        parts.append(part.assign(**scores, score_length=words + rng.integers(0, 3, n)))
    metrics, contrasts = evaluate(pd.concat(parts), "summarization", {}, None)
    assert contrast(contrasts, "dpo-sft", "factual_f1")["low"] > 0.1
    assert contrast(contrasts, "dpo-sft", "length")["difference"] == pytest.approx(10, abs=0.5)
    assert metrics["dpo"]["length"]["high"] > 30


def triage(arm, said, n=40):
    urgency = ["soon", "later"] * (n // 2)
    gold = [{"provider": "nurse", "urgency": u} for u in urgency]
    return rows(arm, gold, [{"provider": "nurse", "urgency": u} if u else {} for u in said])


def test_an_arm_that_cannot_be_read_errs_on_no_side_rather_than_never():
    labels = {"provider": ["nurse"], "urgency": ["later", "soon"]}
    base, sft = triage("base", [""] * 38 + ["soon", "later"]), triage("sft", ["later"] * 40)
    metrics, contrasts = evaluate(pd.concat([base, sft]), "clinical_triage", labels, None)
    assert metrics["base"]["under_triage"]["value"] is None and metrics["base"]["under_triage"]["n"] == 0
    assert metrics["sft"]["under_triage"]["value"] == 0.5 and metrics["sft"]["under_triage"]["n"] == 40
    assert metrics["base"]["unparsed"]["value"] == 0.95
    row = contrast(contrasts, "sft-base", "under_triage")
    assert (row["difference"], row["low"], row["p"]) == (None, None, None)
    assert "gained" not in row
    # half of the answers read is enough: the others are neither error
    half = evaluate(triage("base", ["later", ""] * 20), "clinical_triage", labels, None)[0]
    assert half["base"]["under_triage"]["value"] == 0.5 and half["base"]["over_triage"]["value"] == 0


def test_counts_of_parsed_answers_are_means_over_seeds():
    tables = {
        s: labelled("label", list("abcd") * 5, ["a"] * read + [""] * (20 - read)) for s, read in ((0, 4), (1, 12))
    }
    metrics = values(measure(list(tables.values()), "text_classification", LABELS, None))
    assert metrics["sft"]["accuracy_parsed"]["n"] == 8


def test_the_share_rescued_is_a_metric_where_it_was_looked_at(card, cases):
    outputs = ["yes", "Answer: yes", "who knows"] + ["no"] * 5
    table = predictions_table(get_task(card.task, card), cases, {"base": outputs})
    assert table["score_rescued"].tolist() == [0, 1, 0] + [0] * 5
    assert table.attrs["shareable"]
    predictions = study(SHARES)
    assert "rescued" not in run(predictions)[0]["dpo"]
    looked = predictions.assign(score_rescued=(predictions["arm"] == "base") * 1.0)
    metrics, contrasts = run(looked)
    assert metrics["base"]["rescued"]["value"] == 1 and metrics["dpo"]["rescued"]["value"] == 0
    assert not contrast(contrasts, "sft-base", "rescued")["primary"]


def test_small_counts_of_a_private_source_are_told_by_no_share_and_no_contrast():
    gold = ["a"] * 40
    said = {"sft": ["a"] * 35 + [""] * 5, "dpo": ["a"] * 20 + ["b"] * 20, "sft_more": ["a"] * 25 + ["b"] * 15}
    private = pd.concat([labelled("label", gold, answers, arm) for arm, answers in said.items()])
    private.attrs["shareable"] = False
    metrics, contrasts = run(private)
    cell = metrics["sft"]["unparsed"]
    assert (cell["value"], cell["low"], cell["high"], cell["n"]) == (None, 0, 11 / 40, 40)
    assert (metrics["dpo"]["unparsed"]["value"], metrics["dpo"]["accuracy"]["value"]) == (0, 0.5)
    assert metrics["sft"]["accuracy"]["low"] == 29 / 40  # 5 wrong answers are a small count too
    assert metrics["sft"]["macro_f1"]["value"] > 0.9  # the primary outcome is the study's result
    assert {row["metric"] for row in contrasts if row["contrast"] == "dpo-sft"} == {"macro_f1"}
    row = contrast(contrasts, "dpo-sft_more", "accuracy")  # 5 answers differ, which neither error nor p may tell
    assert "lost" not in row and row["test"] == "t over cases, error rounded up"
    assert (row["high"] - row["low"]) / 2 == pytest.approx(0.07 * 2.0227, rel=1e-3)
    assert row["p"] == pytest.approx(2 * t.sf(0.125 / 0.07, 39), rel=1e-4)
    assert values_table(metrics).loc["sft", "unparsed"] == "< 0.275"
    shown = first_look(private.assign(score_rescued=0.0)).loc["sft"]
    assert shown.tolist() == [40, "> 0.725", "< 0.275", "0.000"]
    few = private.groupby("arm").head(3).assign(score_rescued=0.0)
    assert first_look(few).loc["sft", "n"] == "< 11"
    private.attrs["shareable"] = True
    assert contrast(run(private)[1], "dpo-sft", "unparsed")["lost"] == 5


def test_counts_stay_whole_numbers_beside_a_mean(card):
    shown = show_counts(card, pd.DataFrame({"value": {"pairs": 168.0, "ratio": 0.47}}))
    assert [str(value) for value in shown["value"]] == ["168", "0.47"]
    assert "168.0" not in shown.to_string()


SIXTH = """
import medstudy.arms as arms
arms.ARMS["kto"] = arms.Arm("KTO", "#117733", "*", "sft", "KTOTrainer", "pairs", ("sft", "sft_more"))
arms.CONTRASTS += (("kto", "sft"), ("kto", "sft_more"))
import sys
import pandas as pd
sys.path.insert(0, sys.argv[1])
from made_up import study
from medstudy.evaluation.evaluate import contrasts_view, evaluate, measure, values_table
from medstudy.evaluation.scopes import Cell, contrasts_table, metrics_table
from medstudy.evaluation.verdict import verdict_table
from medstudy.report import figures
shares = {"base": 0.1, "sft": 0.5, "sft_more": 0.5, "dpo": 0.7, "kto": 0.6}
tables = [study(shares, seed=s) for s in range(2)]
metrics, contrasts = evaluate(tables[0], "text_classification", {"label": list("abcd")}, None)
assert {"kto-sft", "kto-sft_more"} <= {row["contrast"] for row in contrasts}
assert "kto" in values_table(metrics).index and len(contrasts_view(contrasts)) == len(contrasts)
measured = measure(tables, "text_classification", {"label": list("abcd")}, None)
cell = Cell("text_classification", "m", measured, (0, 1))
assert "kto-sft_more" in set(verdict_table([cell])["contrast"]) & set(contrasts_table([cell])["contrast"])
log = pd.DataFrame({"step": [1, 2], "loss": [0.7, 0.6], "rewards/margins": [0, 1.0]})
words = lambda figure: " ".join(text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text")))
primary = metrics_table([cell]).query("metric == 'macro_f1'")
for figure in (figures.arms_figure(metrics, ["macro_f1"]), figures.study_figure(primary),
               figures.training_figure({"sft": log, "kto": log})):
    assert "KTO" in words(figure)
"""


def test_a_sixth_arm_is_a_line_in_the_table_of_arms():
    done = subprocess.run([sys.executable, "-c", SIXTH, str(Path(__file__).parents[1])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_reader_sees_has_no_p_of_zero_and_no_text_cut_off():
    row = {"contrast": "dpo-sft", "metric": "f1", "difference": 0.12345, "low": 0.1, "high": 0.2, "n": 9}
    shown = contrasts_view([row | {"p": p, "test": "t"} for p in (0.00004, 0.0312, None)])
    assert shown["p"].tolist() == ["< 0.001", "0.031", ""]
    assert shown["difference"].tolist() == [0.123] * 3
    long = {"rows": {"sft": "100 of 100", "dpo": "38 of 38"}, "stages": ["a" * 30, "b" * 30]}
    page = gates_table([Gate("no row lost", True, long, "all"), Gate("moved", False, 0.5, "more")]).to_html()
    assert f"rows: sft: 100 of 100; dpo: 38 of 38; stages: {'a' * 30}, {'b' * 30}" in page
    assert "passed" in page and "FAILED" in page


@pytest.mark.parametrize(("n", "tagged"), [(4, False), (40, True)])
def test_values_of_a_handful_of_cases_get_no_tag(n: int, tagged: bool) -> None:
    table = values_table({"sft": {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9, "n": n}}})
    assert hasattr(table, "_repr_mimebundle_") == tagged
