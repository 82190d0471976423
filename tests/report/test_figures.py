import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import labelled, study
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from medstudy.arms import ARMS, BASELINES, CONTRASTS
from medstudy.evaluation import comparison, views
from medstudy.evaluation.evaluate import evaluate, measure, values
from medstudy.evaluation.scopes import Cell, metrics_table
from medstudy.evaluation.verdict import Rules
from medstudy.report import figures, forest
from medstudy.show import TAG

PRIMARY = {
    "text_classification": ["f1"],
    "numeric_classification": ["f1"],
    "clinical_reasoning": ["accuracy"],
    "summarization": ["factual_f1"],
    "clinical_triage": ["provider_macro_f1", "urgency_macro_f1"],
}
MODELS = ["builtin/llama", "mistralai/Mistral-7B-Instruct-v0.2"]
PANELS = [(t, m, model) for t, ms in PRIMARY.items() for m in ms for model in MODELS]


def study_table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"task": t, "metric": m, "model": model, "arm": arm, "value": v, "low": v - 0.04, "high": v + 0.05,
         "n": 300, "seeds": 3}
        for t, m, model in PANELS
        for arm, v in zip(ARMS, np.sort(rng.uniform(0.05, 0.9, len(ARMS))), strict=True)
    )  # fmt: skip


def verdicts():
    """verdicts.csv of two models on all tasks, with numbers drawn at random."""
    rng = np.random.default_rng(0)
    names = [("study", "study", "mean", 0.02), ("kind", "classification", "mean", 0.03)]
    names += [("kind", "open-ended", "mean", 0.03), ("kind", "open-ended minus classification", "mean", 0.04)]
    judged = [(t, m) for t, ms in PRIMARY.items() for m in ms] + [("clinical_triage", "under_triage")]
    names += [("task", t, m, 0.05) for t, m in judged]
    names += [("cell", f"{t}, {model}", m, 0.08) for t, m in judged for model in MODELS]
    return pd.DataFrame(
        {"scope": scope, "name": name, "contrast": "-".join(pair), "outcome": outcome, "difference": d, "low": d - w,
         "high": d + w, "p": 0.1, "n_cases": 300, "n_seeds": 3, "verdict": "inconclusive", "sentence": "."}
        for scope, name, outcome, w in names
        for pair, d in zip(CONTRASTS, rng.normal(0.02, 0.06, len(CONTRASTS)), strict=True)
    )  # fmt: skip


def logs(dpo_loss=0.69):
    steps = np.arange(1, 30)
    dpo = {"step": steps, "loss": dpo_loss - steps / 100, "rewards/margins": steps / 10}
    dpo |= {"logps/chosen": -steps / 9, "logps/rejected": -steps / 3}
    sft = pd.DataFrame({"step": steps, "loss": 11 / steps})
    return {"sft": sft, "sft_more": sft, "dpo": pd.DataFrame(dpo)}


def sure(shareable=True):
    """Two arms on 400 cases: one right as often as it says, one surer than it should be."""
    p = np.linspace(0.005, 0.995, 400)
    said = list(np.where(np.random.default_rng(0).random(400) < p, "yes", "no"))
    arms = {"sft": 1, "dpo": 3}
    table = pd.concat(labelled("label", said, said, a).assign(score_p_positive=p**power) for a, power in arms.items())
    table.attrs["shareable"] = shareable
    return table


def run_metrics():
    shares = {"base": 0.0, "few_shot": 0.2, "sft": 0.6, "sft_more": 0.6, "dpo": 1.0}
    return evaluate(study(shares), "text_classification", {"label": list("abcd")}, None)[0]


#: Each figure, and what it must say of its n and its intervals.
DRAWN = {
    "arms": (lambda: figures.arms_figure(run_metrics(), ["macro_f1", "accuracy_parsed"]), ("n = 120", "95 % inter")),
    "study": (lambda: figures.study_figure(study_table()), ("n = 300", "95 % intervals")),
    "forest": (lambda: forest.forest_figure(verdicts(), 0.03), ("n = 300", "95 % intervals")),
    "training": (lambda: figures.training_figure(logs()), ()),
    "calibration": (lambda: figures.calibration_figure(sure(), "yes"), ("n = 400",)),
}


def texts(figure):
    """Every piece of text that is drawn; tick labels beyond the limits are not."""
    figure.draw_without_rendering()
    hidden = set()
    for axis in itertools.chain.from_iterable((a.xaxis, a.yaxis) for a in figure.axes):
        low, high = sorted(axis.get_view_interval())
        beyond = [t for t in axis.get_major_ticks() if not low - 1e-9 <= t.get_loc() <= high + 1e-9]
        hidden |= {tick.label1 for tick in beyond}
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


def words(figure):
    return [text.get_text() for text in texts(figure)]


@pytest.mark.parametrize("name", DRAWN)
def test_it_is_tagged_fits_its_page_and_says_its_n(name):
    figure = DRAWN[name][0]()
    assert TAG in figure._repr_mimebundle_()[1]  # reading a figure's texts changes it
    shown = [(t.get_text(), t.get_window_extent().shrunk(0.9, 0.7)) for t in texts(figure)]
    assert [(a, b) for (a, x), (b, y) in itertools.combinations(shown, 2) if x.overlaps(y)] == []
    width, height = figure.bbox.size
    assert [t for t, box in shown if box.x0 < 0 or box.x1 > width or box.y0 < 0 or box.y1 > height] == []
    width, height = figure.get_size_inches()
    assert width <= figures.A4_WIDTH and height <= 10.7 / 0.85  # a taller one is printed smaller
    assert [said for said in DRAWN[name][1] if said not in " ".join(t for t, _ in shown)] == []


def test_saved_files_are_the_same_twice_and_say_nothing_of_the_maker(tmp_path):
    first, second = (figures.save(figures.training_figure(logs()), tmp_path / f / "curves.v1") for f in "ab")
    assert [f.name for f in first] == ["curves.v1.png", "curves.v1.svg", "curves.v1.pdf"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert b"CreationDate" not in one.read_bytes() and b"<dc:date>" not in one.read_bytes()


def test_what_is_missing_or_masked_is_said_to_be_so():
    table = study_table()
    one_less = table[(table["task"] != "summarization") | (table["model"] == MODELS[0])]
    assert "not run" in words(figures.study_figure(one_less))
    cell = {"value": None, "low": None, "high": None, "n": 0}
    masked = {"value": None, "low": 0.0, "high": 0.275, "n": 40}
    shown = words(figures.arms_figure({"base": {"unparsed": cell}, "sft": {"unparsed": masked}}, ["unparsed"]))
    assert {"no value", "< 0.28"} <= set(shown) and any("n = 40 cases" in text for text in shown)


def test_few_cases_of_a_private_source_stand_in_no_calibration_point():
    drawn = (figures.calibration_figure(sure(shareable), "yes").axes[0].lines for shareable in (True, False))
    public, private = (sum(len(line.get_xdata()) for line in lines) for lines in drawn)
    assert 2 < private < public == 2 + 2 * 5


def test_values_of_few_cases_are_shown_and_not_tagged():
    """Those of 9 patients left a private run as a picture, and in the comparison's table."""
    predictions = [study({"sft": 0.6, "sft_more": 0.6, "dpo": 0.8}, n=n) for n in (9, 40)]
    for table, tagged in zip(predictions, (False, True), strict=True):
        measured = measure([table], "text_classification", {"label": list("abcd")}, None)
        seen = figures.arms_figure(values(measured), ["macro_f1", "accuracy_parsed"])._repr_mimebundle_()
        assert "image/png" in seen[0] and (TAG in seen[1]) is tagged
        rows = metrics_table([Cell("text_classification", "m", measured, (0,))])
        assert (TAG in views.values(rows)._repr_mimebundle_()[1]) is tagged


def test_training_curves_can_be_read():
    axis = figures.training_figure(logs()).axes[0]
    late = axis.transData.transform([[20, 11 / 20], [29, 11 / 29]])[:, 1]
    assert (late[0] - late[1]) / axis.bbox.height > 0.05  # .55 and .38, under a start of 11
    # a loss with an added SFT term does not start at ln 2
    for loss, expected in ((0.69, True), (1.69, False)):
        assert any("ln 2" in text for text in words(figures.training_figure(logs(loss)))) == expected
    for empty in ({}, {"dpo": pd.DataFrame(columns=["step"])}):
        assert words(figures.training_figure(empty)) == ["no training was logged"]


def test_arms_differ_in_grey_and_in_shape():
    # CIE lightness of the colour without its hue
    linear = [[((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(ARMS[arm].colour)] for arm in ARMS]
    lightness = [116 * float(np.dot(c, [0.2126, 0.7152, 0.0722])) ** (1 / 3) - 16 for c in linear]
    assert min(np.abs(np.diff(sorted(lightness)))) > 60 / len(ARMS)
    looks = [arm.marker for arm in (ARMS | BASELINES).values()]
    assert len(set(looks)) == len(looks)


def test_the_forest_goes_from_the_study_to_the_cells_with_published_values_apart():
    shown = words(forest.forest_figure(verdicts(), 0.03))
    heads = ["Study", "Kinds of task", "Tasks, over models", "Each model", "Published, over SFT"]
    assert [text for text in shown if text in heads] == heads
    named = {"← DPO worse      DPO better →", "Triage: under-triage", "Reasoning\nbuiltin/llama"}
    assert named | {"+0.08 Llama3-8B", "+0.13 Llama3-8B, 1 to 5"} <= set(shown)


def test_a_forest_of_one_task_and_model_draws_each_contrast_once():
    """The public study's forest drew the same three rows four times while it had one task."""
    public = comparison.finished_runs(Path(__file__).parents[2] / "docs" / "public")
    cells = comparison.study_cells([run for run in public if run.cell[0] == "numeric_classification"])
    shown = words(forest.forest_figure(comparison.study_tables(cells, Rules())["verdicts.csv"]))
    drawn = ["-.011 [-.374, +.352]", "-.051 [-.221, +.118]", "-.208 [-.574, +.157]"]
    assert sorted(text for text in shown if "[" in text) == sorted(drawn)
    assert "Tasks" in shown and not {"Study", "Kinds of task", "Each model"} & set(shown)


def test_a_forest_without_an_interval_is_drawn_empty():
    table = verdicts().query("scope == 'cell' and name.str.startswith('text_')").assign(low=np.nan, high=np.nan)
    assert "← DPO worse      DPO better →" in words(forest.forest_figure(table))


def test_what_is_not_valid_is_named_in_the_forest_and_not_drawn():
    table = verdicts().query("scope == 'cell'").assign(verdict="not valid", difference=0.01)
    figure = forest.forest_figure(table)
    assert "not valid" in words(figure) and not any("[" in text for text in words(figure))
    drawn = [x for points in figure.axes[0].collections for x, _ in np.atleast_2d(points.get_offsets())]
    assert not any(abs(x) == 0.01 for x in drawn)


def test_right_is_better_in_the_forest_also_where_less_is_better():
    table = verdicts().query("scope == 'task' and outcome in ('under_triage', 'urgency_macro_f1')")
    shown = words(forest.forest_figure(table.assign(difference=0.05, low=0.01, high=0.08), 0.03))
    assert shown.count("-.050 [-.080, -.010]") == shown.count("+.050 [+.010, +.080]") == 3


def test_one_wide_interval_does_not_hide_the_others():
    table = verdicts()
    wide = table.index[(table["scope"] == "task") & (table["contrast"] == "dpo-sft")][0]
    table.loc[wide, ["difference", "low", "high"]] = [-0.3, -1.0, 0.9]
    figure = forest.forest_figure(table)
    low, high = figure.axes[0].get_xlim()
    assert -0.6 < low < 0 < high < 0.6
    assert any("-.300 [-1.000, +.900]" in text.get_text() for text in figure.findobj(Text))
    assert {"<", ">"} <= {line.get_marker() for line in figure.axes[0].lines}


def test_no_value_runs_off_a_forest_though_its_interval_may():
    """The first real study: a contrast of -.38 among small ones had neither marker nor line in the legend."""
    table = verdicts()
    table.loc[(table["scope"] == "study") & (table["contrast"] == "dpo-sft_chosen"), ["difference", "low"]] = -0.7, -1.2
    figure = forest.forest_figure(table, 0.03)
    drawn = [x for points in figure.axes[0].collections for x, _ in np.atleast_2d(points.get_offsets())]
    assert min(drawn) == -0.7 > figure.axes[0].get_xlim()[0] > -1.2
