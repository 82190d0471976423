"""Figures from saved tables, by seaborn: one style, one look per arm (`medstudy.arms`), one way to save."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, BASELINES, CONTRASTS
from medstudy.evaluation.evaluate import value_text
from medstudy.evaluation.metrics import metric_name, small_count
from medstudy.evaluation.verdict import published
from medstudy.params import MARGIN
from medstudy.show import aggregate

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches: text width of an A4 page, and of a figure with one column, which is still read on a telephone.
A4_WIDTH, COLUMN = 7.5, 5.2
_INK, _FAINT, _SMALL = "#333333", "#E6E6E6", 7.5
#: How far a forest plot reaches at most, in medians of the intervals' limits.
_REACH = 3.0
#: Outcome of published_results.csv that stands beside a metric of ours.
_PUBLISHED_AS = {"f1": "label", "macro_f1": "label", "accuracy": "diagnosis", "factual_f1": "quality"}
_PUBLISHED_AS |= {"provider_macro_f1": "provider", "urgency_macro_f1": "urgency"}
#: Panels of a training: title, what the arm is trained on, column of its log, what is added to the line's name.
_TRAINING = (
    ("SFT loss, then continued (log scale)", "cases", "loss", ""),
    ("DPO loss", "pairs", "loss", ""),
    ("Reward margin, chosen - rejected", "pairs", "rewards/margins", ""),
    ("Log-probability of the answers", "pairs", "logps/chosen", ""),
    ("Log-probability of the answers", "pairs", "logps/rejected", ", rejected answers"),
)
_SMOOTHED = 5
#: What a row of the forest plot is about.
_ROW = ["task", "metric", "model", "arm"]
_EDGE = {"s": 36, "edgecolor": _INK, "linewidth": 0.8, "zorder": 3, "clip_on": False}
_OVER = "95 % intervals over test cases (and trainings, with several seeds)"
_PUBLISHED = (
    f"Filled: this study, {_OVER}. Hollow: published\nvalues (Savage et al., JMIR 2025;27:e76048, abstract), "
    "other patients and larger models: for orientation."
)


def style() -> AbstractContextManager[None]:
    """The one style, as a context: fonts that come with matplotlib, quiet axes, stable file contents."""
    import matplotlib as mpl
    import seaborn as sns

    fonts = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "legend.frameon": False}
    bold = {
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "figure.titlesize": 10,
        "figure.titleweight": "bold",
    }
    axes = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "grid.color": _FAINT}
    files = {"savefig.dpi": 200, "svg.hashsalt": "medstudy", "pdf.fonttype": 42}
    seaborns = sns.axes_style("whitegrid") | sns.plotting_context("paper", rc={"axes.titlesize": 9})
    return mpl.rc_context({**seaborns, **fonts, **bold, **axes, **files})


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write ``path`` (without suffix) as png, svg and pdf; the same figure gives the same bytes.

    No date, program or host goes into the files.
    """
    metadata: dict[str, dict[str, Any]] = {
        ".png": {"Software": None},
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in metadata]
    with style():
        for file in files:
            figure.savefig(file, metadata=metadata[file.suffix])
    return files


def save_study(study: Path, tables: Mapping[str, pd.DataFrame], margin: float) -> dict[str, Figure]:
    """Draw and write the study's figures, ``figures/study`` and ``figures/forest`` (`comparison.study_tables`)."""
    contrasts = tables["tables/contrasts.csv"]
    primary = contrasts[contrasts["primary"]].assign(p_holm=lambda table: table["p"])
    main = tables["tables/metrics.csv"].merge(primary[["task", "metric"]].drop_duplicates())
    drawn = {"study": study_figure(main), "forest": forest_figure(primary, margin)}
    for name, figure in drawn.items():
        save(figure, study / "figures" / name)
        with style():
            aggregate(figure)  # saving counts as a change
    return drawn


def arms_figure(metrics: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """One run: every arm's value and 95 % interval, a panel per metric in ``names`` (from metrics.json).

    Baselines, where ``metrics`` holds some (baselines.json), come last, hollow.
    """
    import pandas as pd

    arms = [arm for arm in _arms() if arm in metrics]
    with style():
        figure, axes = _grid(len(names), 1, COLUMN, len(names) * (0.6 + 0.22 * len(arms)) + 0.5)
        for axis, name in zip(axes[:, 0], names, strict=True):
            cells = pd.DataFrame([metrics[arm].get(name, {}) for arm in arms], index=arms)
            _arm_rows(axis, cells, name)
            axis.set_title(f"{_capital(metric_name(name))} (n = {_range(cells['n'])} cases)")
        figure.supxlabel("95 % intervals over test cases, for these trained models", fontsize=_SMALL, x=0.01, ha="left")
        return aggregate(figure)


def study_figure(table: pd.DataFrame) -> Figure:
    """The study: a panel per outcome (rows) and model (columns), every arm with its 95 % interval.

    Args:
        table: one row per task, model, metric, arm with value, low, high, n, seeds (`scopes.metrics_table`),
            already cut down to the metrics to draw. Published values of the same outcome and model family
            are drawn hollow beside them; ratings on another scale are written under their panel.
    """
    outcomes = list(dict.fromkeys(zip(table["task"], table["metric"], strict=True)))
    models = list(dict.fromkeys(table["model"]))
    arms = [arm for arm in ARMS if arm in set(table["arm"])]
    height = len(outcomes) * (0.62 + 0.17 * len(arms)) + 0.7
    with style():
        figure, axes = _grid(len(outcomes), len(models), max(A4_WIDTH, 1.3 + 3.1 * len(models)), height)
        for row, (task, metric) in zip(axes, outcomes, strict=True):
            for axis, model in zip(row, models, strict=True):
                here = table[(table["task"] == task) & (table["metric"] == metric) & (table["model"] == model)]
                _study_panel(axis, here.set_index("arm").reindex(arms), task, metric, model)
            for axis in row[1:]:
                axis.set_yticklabels([])
        for axis, model in zip(axes[0], models, strict=True):
            _above(axis, _model_name(model), 27, fontsize=10, fontweight="bold")
        beside = any(len(_beside(*outcome, model)) for outcome in outcomes for model in models)
        figure.supxlabel(_PUBLISHED if beside else f"{_OVER}.", fontsize=_SMALL, x=0.01, ha="left")
        return aggregate(figure)


def forest_figure(contrasts: pd.DataFrame, margin: float = MARGIN) -> Figure:
    """What DPO adds over SFT, and over SFT continued as long, per outcome and model; the margin is shaded.

    Args:
        contrasts: `scopes.contrasts_table`, rows of primary metrics; drawn are those of two trained arms.
    """
    pairs = {f"{arm}-{other}": (arm, other) for arm, other in CONTRASTS if ARMS[other].trainer}
    drawn = contrasts[contrasts["contrast"].isin(pairs)].dropna(subset=["low", "high"])
    drawn = drawn.assign(arm=[pairs[c][0] for c in drawn["contrast"]], other=[pairs[c][1] for c in drawn["contrast"]])
    outcomes = drawn.groupby(["task", "metric"], sort=False)  # the models of an outcome side by side
    rows = {key: here for _, outcome in outcomes for key, here in outcome.groupby(_ROW, sort=False)}
    who = "/".join(ARMS[arm].label for arm in dict.fromkeys(drawn["arm"]))
    # one wide interval would press all others together: it runs off the edge, with an arrow
    limits = drawn[["low", "high"]].abs()
    reach = max(2 * margin, min(1.05 * limits.max().max(), _REACH * limits.stack().median()))
    with style():
        figure, axes = _grid(1, 1, 6.2, 0.42 * len(rows) + 1.7)
        axis = axes[0, 0]
        axis.axvspan(-margin, margin, color=_FAINT, zorder=0, label=f"too small to matter (within {margin:g})")
        axis.axvline(0, color=_INK, linewidth=0.8)
        for y, here in enumerate(rows.values()):
            _forest_row(axis, y, here, reach)
        names = (f"{_capital(t)}, {_model_name(m)}\n{metric_name(o)}: {ARMS[a].label}" for t, o, m, a in rows)
        _rows_from_top(axis, [name if "/" in who else name[: name.rindex(":")] for name in names])
        axis.set(xlim=(-reach, reach), xlabel=f"← {who} worse      difference      {who} better →")
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=3, columnspacing=1)
        _above(axis, "difference [95 %], p", 4, x=1.05, fontsize=_SMALL, fontweight="bold")
        n = f"On the same test cases: n = {_range(drawn['n'])}, {_range(drawn['seeds'])} seeds."
        figure.supxlabel(f"{n}\n{_OVER}.", fontsize=_SMALL, x=0.01, ha="left")
        return aggregate(figure)


def calibration_figure(predictions: pd.DataFrame, positive: str, bins: int = 5) -> Figure:
    """How often the positive label is right where an arm gives it a probability (``score_p_positive``).

    Points are bins of equally many test cases; on the diagonal an arm means what it says. Of a private source,
    bins with few cases on one side are left out (`metrics.small_count`).
    """
    import pandas as pd
    import seaborn as sns
    from sklearn.calibration import calibration_curve

    points = []
    for arm in [arm for arm in ARMS if arm in set(predictions["arm"])]:
        rows = predictions[predictions["arm"] == arm]
        truth = [positive in json.loads(gold).values() for gold in rows["gold"]]
        share, said = calibration_curve(truth, rows["score_p_positive"], n_bins=bins, strategy="quantile")
        points.append(pd.DataFrame({"said": said, "share": share, "arm": arm, "n": len(rows) / len(said)}))
    shown = pd.concat(points)
    if not predictions.attrs.get("shareable", False):
        shown = shown[[small_count(share * n, n) is None for share, n in zip(shown["share"], shown["n"], strict=True)]]
    with style():
        figure, axes = _grid(1, 1, COLUMN, 3.6)
        axis = axes[0, 0]
        axis.plot([0, 1], [0, 1], ":", color=_INK, linewidth=0.8)
        if len(shown):
            sns.lineplot(shown, x="said", y="share", ax=axis, dashes=False, markeredgecolor=_INK, **_look())
            axis.get_legend().remove()
        axis.set(xlabel=f"probability given to '{positive}'", ylabel=f"share of cases that are '{positive}'")
        axis.set_title(f"n = {predictions['case_id'].nunique()} test cases; a point is 1/{bins} of them")
        handles, names = axis.get_legend_handles_labels()
        figure.legend(handles, [ARMS[name].label for name in names], loc="outside right upper")
        return aggregate(figure)


def training_figure(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Training curves from training/<arm>.csv: SFT loss, and loss, reward margin and log-probabilities of DPO."""
    import pandas as pd

    lines, looks = [], {}
    for arm, log in logs.items():
        before = logs.get(ARMS[arm].start) if ARMS[arm].rows == "cases" else None  # SFT goes on where SFT ended
        steps = log["step"] + (0 if before is None else before["step"].max())
        for panel, rows, column, suffix in _TRAINING:
            if rows == ARMS[arm].rows and column in log:
                line = ARMS[arm].label + suffix
                looks[line] = (ARMS[arm].colour, (3, 2) if suffix else "")
                lines.append(pd.DataFrame({"step": steps, "value": log[column], "panel": panel, "line": line}))
    if not lines:
        with style():
            figure, axes = _grid(1, 1, COLUMN, 1)
            axes[0, 0].set(title="no training was logged", xticks=[], yticks=[])
            return aggregate(figure)
    colours, dashes = ({line: look[i] for line, look in looks.items()} for i in (0, 1))
    options = {"col_wrap": 2, "hue": "line", "style": "line", "palette": colours, "dashes": dashes}
    grid = _curves(pd.concat(lines), "panel", (6.2, 4.4), **options)
    sft, dpo = (grid.axes_dict.get(panel) for panel in (_TRAINING[0][0], _TRAINING[1][0]))
    if sft:
        sft.set_yscale("log")  # the first steps would flatten the rest
        sft.yaxis.set_major_formatter("{x:g}")
    # a loss with an added SFT term does not start at ln 2: no line that would mislead
    if dpo and abs(dpo.lines[0].get_ydata()[0] - math.log(2)) < 0.05:
        dpo.axhline(math.log(2), color=_INK, linewidth=0.8, linestyle=":")
        right = {"transform": dpo.get_yaxis_transform(), "ha": "right", "va": "top", "fontsize": _SMALL}
        dpo.text(1, math.log(2), "ln 2: no preference yet", **right)
    with style():
        return aggregate(grid.figure)


def trainings_figure(logs: pd.DataFrame) -> Figure:
    """DPO training of every run (`comparison.training_logs`): a row a task, a colour a model, a dash a seed.

    Lines are means over `_SMOOTHED` steps: single steps are a few pairs each, and mostly noise.
    """
    names = {"loss": "loss", "rewards/margins": "reward margin", "logps/chosen": "log p(chosen)"}
    by = ["task", "model", "seed"]
    smooth = logs.set_index([*by, "step"]).groupby(by, sort=False)[list(names)].rolling(_SMOOTHED, min_periods=1).mean()
    smooth = smooth.droplevel([0, 1, 2]).rename(columns=names).reset_index()
    tidy = smooth.assign(task=smooth["task"].map(_capital), model=smooth["model"].map(_model_name))
    tidy = tidy.melt([*by, "step"], var_name="curve")
    size = A4_WIDTH, 1.45 * tidy["task"].nunique() + 0.4
    grid = _curves(tidy, "curve", size, row="task", hue="model", style="seed", palette="colorblind")
    grid.set_xlabels(f"optimiser step (mean of {_SMOOTHED})")
    with style():
        return aggregate(grid.figure)


def _curves(tidy: pd.DataFrame, panels: str, size: tuple[float, float], **options: Any) -> Any:
    """Small multiples of lines, step by step; one legend above."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    look = {"kind": "line", "errorbar": None, "linewidth": 1.2, "facet_kws": {"sharex": False, "sharey": False}}
    with style():
        grid = sns.relplot(tidy, x="step", y="value", col=panels, **look, **options)
        grid.set_titles("{col_name}").set_axis_labels("optimiser step", "")
        for axes, name in zip(grid.axes if grid.row_names else (), grid.row_names, strict=True):
            axes[0].set_ylabel(name.replace(" ", "\n", 1))
        grid.figure.set_size_inches(*size)
        grid.figure.set_layout_engine("constrained")
        sns.move_legend(grid, "outside upper left", ncols=8, title=None)
    plt.close(grid.figure)  # the caller shows or saves it; left open, a notebook would show it twice
    return grid


def _arms() -> dict[str, Any]:
    return ARMS | BASELINES


def _look() -> dict[str, Any]:
    """What seaborn is told of arms: the same colour and marker everywhere."""
    looks = _arms()
    return {
        "hue": "arm",
        "style": "arm",
        "palette": {name: arm.colour for name, arm in looks.items()},
        "markers": {name: arm.marker for name, arm in looks.items()},
    }


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    plt.close(figure)  # the caller shows or saves it; left open, a notebook would show it twice
    return figure, axes


def _rows_from_top(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def _arm_rows(axis: Axes, cells: pd.DataFrame, metric: str) -> None:
    """A row per arm, first on top: marker, interval, and the numbers on the right."""
    import seaborn as sns

    cells = cells.reindex(columns=["value", "low", "high", "n"]).astype(float).assign(row=range(len(cells)))
    shown = cells.dropna(subset=["value"]).rename_axis("arm").reset_index()
    axis.hlines(shown["row"], shown["low"], shown["high"], color=_INK, linewidth=1.2, zorder=2)
    if len(shown):
        sns.scatterplot(shown, x="value", y="row", ax=axis, legend=False, **_look(), **_EDGE)
    digits = 1 if metric == "length" else 2
    for cell in cells.to_dict("records"):
        bare = math.isnan(cell["value"]) or math.isnan(cell["low"])
        interval = "" if bare else f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
        _beside_row(axis, cell["row"], (value_text(cell, digits) or "no value") + interval)
    _rows_from_top(axis, [_arms()[arm].label for arm in cells.index])
    axis.set(xlabel="", ylabel="", xlim=(0, 1.1 * cells["high"].max() if metric == "length" else 1))


def _study_panel(axis: Axes, cells: pd.DataFrame, task: str, metric: str, model: str) -> None:
    _arm_rows(axis, cells, metric)
    axis.set_title(f"{_capital(task)}: {metric_name(metric)}", pad=11)
    seeds = cells["seeds"].max()
    count = (
        "not run"
        if math.isnan(seeds)
        else f"n = {_range(cells['n'])} cases, {seeds:.0f} seed{'s' if seeds > 1 else ''}"
    )
    _above(axis, count, 3, fontsize=_SMALL, color="#555555")
    beside = _beside(task, metric, model)
    rated = beside["metric"] == "likert_1_5"
    for row in beside[~rated & beside["arm"].isin(cells.index)].to_dict("records"):
        look = {"marker": ARMS[row["arm"]].marker, "facecolor": "none", "s": 60, "zorder": 4, "clip_on": False}
        axis.scatter(row["value"], cells.index.get_loc(row["arm"]), edgecolor=_INK, linewidth=0.8, **look)
    if any(rated):
        values = ", ".join(f"{ARMS[r.arm].label} {r.value:.2f}" for r in beside[rated].itertuples())
        axis.set_xlabel(f"published, rated 1 to 5: {values}", fontsize=_SMALL)


def _beside(task: str, metric: str, model: str) -> pd.DataFrame:
    """The published values of this panel: the same outcome of the same task, on whatever scale."""
    rows = published(task, model).dropna(subset=["value"])
    return rows[rows["outcome"] == _PUBLISHED_AS.get(metric)]


def _forest_row(axis: Axes, y: int, here: pd.DataFrame, reach: float) -> None:
    for place, row in enumerate(here.to_dict("records")):
        other, at = ARMS[row["other"]], y + 0.34 * (place - (len(here) - 1) / 2)
        axis.plot([row["low"], row["high"]], [at, at], color=other.colour, linewidth=1.5)
        for beyond, edge, arrow in ((row["low"] < -reach, -reach, "<"), (row["high"] > reach, reach, ">")):
            if beyond:
                axis.plot(edge, at, arrow, color=other.colour, markersize=5, clip_on=False)
        if abs(row["difference"]) <= reach:
            axis.scatter(
                row["difference"], at, color=other.colour, marker=other.marker, label=f"against {other.label}", **_EDGE
            )
        # + 0.0 turns a rounded -0.0 into 0.0
        middle, low, high = (f"{round(row[key], 2) + 0.0:+.2f}" for key in ("difference", "low", "high"))
        p = "" if math.isnan(row["p_holm"]) else f"  p {_p(row['p_holm'])}"
        _beside_row(axis, at, f"{middle} [{low}, {high}]{p}")


def _above(axis: Axes, text: str, points: float, x: float = 0, **options: Any) -> None:
    axis.annotate(text, (x, 1), (0, points), "axes fraction", textcoords="offset points", **options)


def _beside_row(axis: Axes, y: float, text: str) -> None:
    axis.text(1.05, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=_SMALL, color=_INK)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def _range(values: pd.Series) -> str:
    counted = values[values > 0]  # an arm without a value has none
    low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
    return f"{low}" if low == high else f"{low} to {high}"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")


def _model_name(model: str) -> str:
    return model if len(model) <= 24 else model.split("/")[-1]
