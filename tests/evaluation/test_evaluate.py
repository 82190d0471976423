import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import labelled, rows, study
from scipy.stats import t

from medstudy.evaluation.evaluate import Measured, evaluate, measure, values
from medstudy.evaluation.metrics import PredictionsError
from medstudy.evaluation.predictions import predictions_table
from medstudy.evaluation.scopes import Cell, contrasts_table, variances_table
from medstudy.evaluation.statistics import estimates
from medstudy.evaluation.verdict import Rules, verdict_table
from medstudy.evaluation.views import contrasts_view, first_look, show_counts, values_table
from medstudy.tasks import get_task

LABELS = {"label": list("abcd")}
SHARES = {"base": 0.1, "sft": 0.6, "sft_more": 0.65, "dpo": 0.8}


def run(predictions):
    return evaluate(predictions, "text_classification", LABELS, None)


def measured(*tables):
    return measure(tables, "text_classification", LABELS, None)


def contrast(contrasts, name, metric):
    return next(r for r in contrasts if r["contrast"] == name and r["metric"] == metric)


def test_shapes_of_the_contract_and_intervals_by_wilson():
    predictions = study(SHARES)
    metrics, contrasts = run(predictions)
    assert list(metrics) == ["base", "sft", "sft_more", "dpo"]
    assert set(metrics["dpo"]) == {"macro_f1", "accuracy", "accuracy_parsed", "unparsed"}
    assert {row["contrast"] for row in contrasts} == {"sft-base", "sft_more-sft", "dpo-sft", "dpo-sft_more"}
    assert {"contrast", "metric", "difference", "low", "high", "p", "test", "n"} <= set(contrasts[0])
    json.dumps([metrics, contrasts], allow_nan=False)
    cell = metrics["dpo"]["accuracy"]  # 96 of 120
    assert [cell[k] for k in ("value", "low", "high", "n")] == pytest.approx([0.8, 0.719633, 0.861755, 120], rel=1e-5)
    row = contrast(contrasts, "sft-base", "macro_f1")
    assert row["low"] > 0 and row["p"] < 0.01
    assert run(predictions.sample(frac=1, random_state=1))[1] == contrasts


def test_accuracy_contrast_is_mcnemar_on_the_discordant_cases():
    gold = ["a"] * 20
    sft = labelled("label", gold, ["a"] * 5 + ["b"] * 15, "sft")
    dpo = labelled("label", gold, ["b"] * 1 + ["a"] * 12 + ["b"] * 7, "dpo")
    row = contrast(run(pd.concat([sft, dpo]))[1], "dpo-sft", "accuracy")
    assert (row["gained"], row["lost"], row["discordant"], row["test"]) == (8, 1, 9, "exact McNemar")
    assert row["difference"] == pytest.approx(7 / 20)
    assert row["p"] == pytest.approx(2 * (1 + 9) / 2**9)  # 0 or 1 of 9 discordant cases, on either side


def test_a_model_that_answers_nothing_scores_0_of_all_cases():
    gold = list("abcd") * 10
    silent, right = labelled("label", gold, [""] * 40, "base"), labelled("label", gold, gold, "sft")
    metrics, contrasts = run(pd.concat([silent, right]))
    assert metrics["base"]["macro_f1"]["value"] == 0 and metrics["base"]["unparsed"]["value"] == 1
    assert metrics["base"]["macro_f1"]["n"] == metrics["base"]["accuracy"]["n"] == 40
    note = "no case is counted, or one group: no interval"
    assert metrics["base"]["accuracy_parsed"] == {"value": None, "low": None, "high": None, "n": 0, "note": note}
    assert metrics["sft"]["macro_f1"]["value"] == 1 and metrics["sft"]["macro_f1"]["low"] < 1
    assert contrast(contrasts, "sft-base", "macro_f1")["p"] < 0.01


def test_seeds_are_averaged_and_repeated_ones_add_no_certainty():
    one, thrice = (measured(*[study(SHARES)] * seeds)[0] for seeds in (1, 3))
    [alone], [again] = (estimates([m.line(("dpo", "sft"))]) for m in (one, thrice))
    assert (alone.value, alone.error) == pytest.approx((again.value, again.error), rel=0.06)
    found = measured(*(study(SHARES | {"dpo": share}, seed=s) for s, share in enumerate((0.7, 0.8, 0.9))))
    assert values(found)["dpo"]["accuracy"]["value"] == pytest.approx(0.8)
    row = next(m for m in found if m.metric.name == "accuracy").row(("dpo", "sft"))
    assert row["by_seed"] == pytest.approx([0.1, 0.2, 0.3])
    assert (row["seeds"], row["test"]) == (3, "t over seeds and cases")
    read = (labelled("label", list("abcd") * 5, ["a"] * n + [""] * (20 - n)) for n in (4, 12))
    assert values(measured(*read))["sft"]["accuracy_parsed"]["n"] == 8


def test_cases_of_a_group_are_left_out_together():
    single = study(SHARES, n=60)
    twin = single.assign(case_id=single["case_id"] + "-twin")
    whole, lone = pd.concat([single, twin]), pd.concat([single, twin.assign(group_id=twin["case_id"])])
    grouped = contrast(run(whole)[1], "dpo-sft", "macro_f1")
    assert (grouped["units"], grouped["n"], grouped["test"]) == (60, 120, "t over cases")
    assert grouped["low"] == contrast(run(single)[1], "dpo-sft", "macro_f1")["low"]
    assert grouped["low"] < contrast(run(lone)[1], "dpo-sft", "macro_f1")["low"]


def test_summaries_are_scored_and_the_jackknife_of_a_mean_is_its_standard_error():
    n, rng, parts = 60, np.random.default_rng(0), []
    for arm, lift, words in (("sft", 0.0, 20.0), ("dpo", 0.2, 30.0)):
        part = labelled("summary", ["g"] * n, ["s"] * n, arm)
        scores = {f"score_{m}": 0.4 + lift + 0.3 * rng.random(n) for m in ("factual_f1", "rouge1", "rouge2", "rougeL")}
        parts.append(part.assign(**scores, score_length=words + rng.integers(0, 3, n)))
    metrics, contrasts = evaluate(pd.concat(parts), "summarization", {}, None)
    assert contrast(contrasts, "dpo-sft", "factual_f1")["low"] > 0.1
    assert contrast(contrasts, "dpo-sft", "length")["difference"] == pytest.approx(10, abs=0.5)
    assert metrics["dpo"]["length"]["high"] > 30
    first = measure([parts[0]], "summarization", {}, None)[0]
    scores = parts[0][first.metric.source]
    assert first.line("sft").case_variance - 2 / n**2 == pytest.approx(scores.var(ddof=1) / n)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.drop(columns="status"), "status"),
        (lambda p: p.iloc[1:], "case-0.*once by every arm .times: base 0.; give all"),
        (lambda p: pd.concat([p, p.iloc[:1]]), "case-0.*times: base 2"),
        (lambda p: p.assign(arm=p["arm"].replace("dpo", "dpo2")), "dpo2"),
        (lambda p: p.assign(gold=["{}", *p["gold"].iloc[1:]]), "several golds"),
        (lambda p: p.assign(group_id=["other", *p["group_id"].iloc[1:]]), "several golds or groups"),
    ],
)
def test_unfair_tables_are_refused(spoil, message):
    predictions = study(SHARES, n=10)
    with pytest.raises(PredictionsError, match=message):
        run(spoil(predictions))


def test_seeds_with_other_arms_or_other_golds_are_refused():
    whole = study(SHARES, n=10)
    with pytest.raises(PredictionsError, match="different arms"):
        measured(whole, whole[whole["arm"] != "dpo"])
    with pytest.raises(PredictionsError, match="several golds"):
        measured(whole, whole.assign(gold=json.dumps({"label": "a"})))


def test_an_arm_that_cannot_be_read_errs_on_no_side_rather_than_never():
    def said(arm, answers):
        gold = [{"provider": "nurse", "urgency": u} for u in ["soon", "later"] * 20]
        return rows(arm, gold, [{"provider": "nurse", "urgency": u} if u else {} for u in answers])

    labels = {"provider": ["nurse"], "urgency": ["later", "soon"]}
    base, sft = said("base", [""] * 38 + ["soon", "later"]), said("sft", ["later"] * 40)
    metrics, contrasts = evaluate(pd.concat([base, sft]), "clinical_triage", labels, None)
    assert metrics["base"]["under_triage"]["value"] is None and metrics["base"]["under_triage"]["n"] == 0
    assert metrics["sft"]["under_triage"]["value"] == 0.5 and metrics["sft"]["under_triage"]["n"] == 40
    row = contrast(contrasts, "sft-base", "under_triage")
    assert (row["difference"], row["low"], row["p"]) == (None, None, None) and "gained" not in row
    # half of the answers read is enough: the others are neither error
    half = evaluate(said("base", ["later", ""] * 20), "clinical_triage", labels, None)[0]
    assert half["base"]["under_triage"]["value"] == 0.5 and half["base"]["over_triage"]["value"] == 0


def test_an_answer_read_though_not_in_its_form_is_rescued(card, cases):
    outputs = ["yes", "Answer: yes", "who knows"] + ["no"] * 5
    table = predictions_table(get_task(card.task, card), cases, {"base": outputs})
    assert table["score_rescued"].tolist() == [0, 1, 0] + [0] * 5 and table.attrs["shareable"]
    assert first_look(table, card).loc["base", ["rescued", "n"]].tolist() == ["0.125", 8]


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
    read = metrics["sft"]["accuracy_parsed"]  # its n would tell the 5 that were not read
    assert (read["value"], read["n"]) == (None, 40) and metrics["dpo"]["accuracy_parsed"]["n"] == 40
    private.attrs["shareable"] = True
    assert contrast(run(private)[1], "dpo-sft", "unparsed")["lost"] == 5


@pytest.mark.parametrize("positives", [5, 15])
def test_few_positives_of_a_private_source_are_told_by_no_auroc(positives: int) -> None:
    gold = ["a"] * positives + ["b"] * (40 - positives)
    table = labelled("label", gold, gold, "sft").assign(score_p_positive=[i / 40 for i in range(40)])
    table.attrs["shareable"] = False
    cell = evaluate(table, "text_classification", {"label": ["a", "b"]}, "a")[0]["sft"]["auroc"]
    assert (cell["value"] is None) == (positives == 5)


def test_answers_that_differ_in_one_seed_of_a_private_source_are_counted_seed_by_seed() -> None:
    """Together 16 gained and 14 lost, which are 9 and 7 patients of one training."""
    gold, tables = ["a"] * 40, []
    for gained, lost in ((8, 7), (8, 7)):
        said = {"sft": ["a"] * (40 - gained) + ["b"] * gained, "dpo": ["b"] * lost + ["a"] * (40 - lost)}
        tables.append(pd.concat([labelled("label", gold, answers, arm) for arm, answers in said.items()]))
        tables[-1].attrs["shareable"] = False
    accuracy = next(m for m in measured(*tables) if m.metric.name == "accuracy")
    row = replace(accuracy, answers=replace(accuracy.answers, shareable=False)).row(("dpo", "sft"))
    assert "gained" not in row and row["test"].endswith("error rounded up")
    made = measure(tables, "clinical_reasoning", {}, None)  # accuracy is its primary outcome
    for shareable in (False, True):
        of = [replace(m, answers=replace(m.answers, shareable=shareable)) for m in made]
        told = variances_table([Cell("clinical_reasoning", "m", of, (0, 1))])[["seed_sd", "own_sd", "case_sd"]]
        assert told.equals(told.round(2)) is not shareable


@pytest.mark.parametrize("task", ["text_classification", "clinical_triage"])
def test_few_differing_answers_are_counted_for_an_f1_too(task: str) -> None:
    """Errors of an F1 were exact: those of 1 to 10 changed answers of 100 are its square roots, case by case."""
    names = ["label"] if task == "text_classification" else ["provider", "urgency"]
    labels = {name: ["a", "b"] for name in names}

    def tables(changed: int, shareable: bool) -> list[pd.DataFrame]:
        gold, made = [dict.fromkeys(labels, g) for g in "ab" * 50], []
        for seed in range(2):
            answers = {"sft": gold[:90] + [{}] * 10, "sft_more": gold[:60] + [{}] * 40, "dpo": gold[:90] + [{}] * 10}
            answers["dpo"][30 * seed : 30 * seed + changed] = [dict.fromkeys(labels, "b")] * changed
            made.append(pd.concat([rows(arm, gold, said) for arm, said in answers.items()]))
            made[-1].attrs["shareable"] = shareable
        return made

    for changed, shareable, hidden in ((4, False, True), (4, True, False), (25, False, False)):
        cell = Cell(task, "m", measure(tables(changed, shareable), task, labels, None), (0, 1))
        shown = contrasts_table([cell]).query("primary and contrast == 'dpo-sft'")
        assert shown["test"].str.endswith("error rounded up").all() == hidden
        told = variances_table([cell]).query("contrast == 'dpo-sft' and outcome != 'under_triage'")
        assert "mean" in set(told["outcome"])
        deviations = told[["seed_sd", "own_sd", "case_sd"]]
        assert (told["own_sd"] == 0).all() == deviations.equals(deviations.round(2)) == hidden


def test_few_differing_answers_are_told_by_no_interval_of_their_own_nor_of_another_cell() -> None:
    """The same differences, training by training, from 12, 18 or 30 answers: nothing that is shown may tell which."""

    def made(changes: list[tuple[int, int]]) -> list[Measured]:
        gold, tables = ["a"] * 200, []
        for first, (gained, lost) in zip((40, 90, 140), changes, strict=True):  # in each training other cases
            said = {arm: ["b"] * 40 + ["a"] * 160 for arm in ("sft", "dpo")}
            said["sft"][first : first + gained] = ["b"] * gained
            said["dpo"][first + gained : first + gained + lost] = ["b"] * lost
            said["sft_more"] = said["sft"]
            tables.append(pd.concat([labelled("label", gold, answers, arm) for arm, answers in said.items()]))
            tables[-1].attrs["shareable"] = False
        return measure(tables, "clinical_reasoning", {}, None)

    def shown(more: int) -> list[str]:
        few, many = [(2 + more, more), (1 + more, more), (3 + more, more)], [(30, 20), (28, 25), (35, 22)]
        cells = [Cell("clinical_reasoning", name, made(of), (0, 1, 2)) for name, of in (("few", few), ("many", many))]
        rows = contrasts_table(cells)
        return [table.to_csv() for table in (rows[rows["metric"] == "accuracy"], verdict_table(cells, Rules()))]

    assert shown(1) == shown(2) == shown(4)


def test_a_mean_over_seeds_gives_no_small_count_of_one_seed_away():
    """One unread answer in two seeds read .0125, and .075 beside a shown seed of 12 gave the other's 3 away."""
    gold = ["a"] * 40
    for unread in ((0, 1), (12, 3)):
        tables = [labelled("label", gold, ["a"] * (40 - n) + [""] * n, "sft") for n in unread]
        private = [table.assign() for table in tables]
        for table in private:
            table.attrs["shareable"] = False
        cell = values(measured(*private))["sft"]["unparsed"]
        assert cell["value"] is None and cell["low"] <= sum(unread) / 80 <= cell["high"]
    alike = [labelled("label", gold, ["a"] * 20 + [""] * 20, "sft") for _ in range(2)]
    assert values(measured(*alike))["sft"]["unparsed"]["value"] == 0.5


def test_what_a_reader_sees_has_no_text_cut_off_no_p_of_zero_and_counts_stay_whole_numbers(card):
    row = {"contrast": "dpo-sft", "metric": "f1", "difference": 0.12345, "low": 0.1, "high": 0.2, "n": 9}
    shown = contrasts_view([row | {"p": p, "test": "t"} for p in (0.00004, 0.0312, None)])
    assert shown["p"].tolist() == ["< 0.001", "0.031", ""] and shown["difference"].tolist() == [0.123] * 3
    counts = show_counts(card, pd.DataFrame({"value": {"pairs": 168.0, "ratio": 0.47}}))
    assert [str(value) for value in counts["value"]] == ["168", "0.47"] and "168.0" not in counts.to_string()
    # values of a handful of cases get no tag, nor do rows that are not named by the package
    for sizes in ({"sft": 40}, {"sft": 4}, {"sft": 40, "dpo": 4}, {"sft": 40, "Mrs. Huber": 40}):
        cells = {arm: {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9, "n": n}} for arm, n in sizes.items()}
        assert hasattr(values_table(cells), "_repr_mimebundle_") == (sizes == {"sft": 40})


SIXTH = """
import medstudy.arms as arms
arms.ARMS["kto"] = arms.Arm("KTO", "#117733", "*", "sft", "KTOTrainer", "pairs", ("sft", "sft_more"))
arms.CONTRASTS += (("kto", "sft"), ("kto", "sft_more"))
import sys
import pandas as pd
sys.path.insert(0, sys.argv[1])
from made_up import study
from medstudy.evaluation.evaluate import evaluate, measure
from medstudy.evaluation.views import contrasts_view, values_table
from medstudy.evaluation.scopes import Cell, contrasts_table, metrics_table
from medstudy.evaluation.verdict import Rules, verdict_table
from medstudy.report import figures
shares = {"base": 0.1, "sft": 0.5, "sft_more": 0.5, "dpo": 0.7, "kto": 0.6}
tables = [study(shares, seed=s) for s in range(2)]
metrics, contrasts = evaluate(tables[0], "text_classification", {"label": list("abcd")}, None)
assert {"kto-sft", "kto-sft_more"} <= {row["contrast"] for row in contrasts}
assert "kto" in values_table(metrics).index and len(contrasts_view(contrasts)) == len(contrasts)
measured = measure(tables, "text_classification", {"label": list("abcd")}, None)
cell = Cell("text_classification", "m", measured, (0, 1))
assert "kto-sft_more" in set(verdict_table([cell], Rules())["contrast"]) & set(contrasts_table([cell])["contrast"])
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


def test_a_new_kind_of_metric_is_masked_until_it_is_known_to_tell_no_count():
    private = study(SHARES)
    private.attrs["shareable"] = False
    [f1] = [m for m in measure([private], "text_classification", LABELS, None) if m.metric.kind == "f1"]
    assert f1.masked("sft") is None
    new = replace(f1, metric=replace(f1.metric, kind="recall", primary=False))
    few = replace(new, terms={"sft": [np.full((120, 1, 2), 0.05)]})
    assert few.masked("sft") == (0, 1) and few.entry("sft", estimates([f1.line("sft")])[0])["value"] is None
