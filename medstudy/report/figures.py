"""Figures from saved tables, drawn by seaborn: one style, one look per arm (`medstudy.arms`), one way to save."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medstudy.arms import ARMS, BASELINES, Arm
from medstudy.data.cases import SMALLEST_COUNT
from medstudy.evaluation.metrics import metric_name, small_count
from medstudy.evaluation.views import value_text
from medstudy.show import aggregate

#: Inches: text width of an A4 page, and of a figure with one column, which is still read on a telephone.
A4_WIDTH, COLUMN = 7.5, 4.8
INK, FAINT, SMALL = "#333333", "#E6E6E6", 7.5
_LOOKS = ARMS | BASELINES
OVER = "95 % intervals: what other test cases and, with several seeds, other trainings would give."
#: Panels of a training figure; and of which the columns of a log are, with their style.
_PANELS = ("SFT loss, then its controls (log scale)", "DPO loss", "Reward margin, chosen - rejected")
_PANELS += ("Log-probability of the answers",)
_SFT = [("loss", 0, "-")]
_DPO = [("loss", 1, "-"), ("rewards/margins", 2, "-"), ("logps/chosen", 3, "-"), ("logps/rejected", 3, "--")]


def style() -> AbstractContextManager[None]:
    """The one style, as a context: fonts that come with matplotlib, quiet axes, stable file contents."""
    look = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "legend.frameon": False}
    look |= {"axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlesize": 9, "grid.color": FAINT}
    look |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888"}
    look |= {"savefig.dpi": 200, "svg.hashsalt": "medstudy", "pdf.fonttype": 42}
    return mpl.rc_context(sns.axes_style("whitegrid") | sns.plotting_context("paper") | look)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path`` (without suffix) as png, svg and pdf; the same figure gives the same bytes, no date, no host."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [Path(f"{path}.{suffix}") for suffix in ("png", "svg", "pdf")]
    unsaid = (["Software"], ["Date", "Creator"], ["CreationDate", "Creator", "Producer"])
    with style():
        for file, names in zip(files, unsaid, strict=True):
            figure.savefig(file, metadata=dict.fromkeys(names))
        aggregate(figure)  # saving counts as a change
    return files


def arms_figure(metrics: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """One run: every arm's value and 95 % interval, a panel per metric in ``names`` (from metrics.json).

    Baselines, where ``metrics`` holds some (baselines.json), come last, hollow.
    """
    cells = ({"title": metric_name(m), "metric": m, "arm": a, **metrics[a].get(m, {})} for m in names for a in metrics)
    table = pd.DataFrame(cells).assign(model="", seeds=1)
    return _panels(table, COLUMN, "95 % intervals over test cases, for these trained models")


def study_figure(table: pd.DataFrame) -> Figure:
    """The study: a panel per outcome (rows) and model (columns), every arm with its 95 % interval.

    ``table``: rows of tables/metrics.csv, already cut down to the metrics to draw.
    """
    titles = table["task"].str.replace("_", " ") + ": " + table["metric"].map(metric_name)
    models = table["model"].nunique()
    return _panels(table.assign(title=titles), COLUMN if models == 1 else max(A4_WIDTH, 1.3 + 3.1 * models), OVER)


def calibration_figure(predictions: pd.DataFrame, positive: str, bins: int = 5) -> Figure:
    """How often the positive label is right where an arm gives it a probability (``score_p_positive``).

    Points are bins of equally many test cases; on the diagonal an arm means what it says. Of a private source,
    bins with few cases on one side are left out (`metrics.small_count`).
    """
    shareable = predictions.attrs.get("shareable", False)
    with style():
        figure, [[axis]] = grid(1, 1, COLUMN, 3.6)
        axis.plot([0, 1], [0, 1], ":", color=INK, linewidth=0.8)
        for name, rows in predictions.groupby("arm", sort=False):
            said = rows["score_p_positive"]
            right = rows["gold"].map(lambda gold: positive in json.loads(gold).values())
            bin_of = np.searchsorted(np.quantile(said, np.linspace(0, 1, bins + 1)[1:-1]), said)
            points = right.groupby(bin_of).agg(["mean", "sum", "size"]).assign(said=said.groupby(bin_of).mean())
            few = [small_count(*counts) is not None for counts in zip(points["sum"], points["size"], strict=True)]
            points = points[[shareable or not masked for masked in few]]
            look = {"color": ARMS[name].colour, "marker": ARMS[name].marker, "markeredgecolor": INK}
            sns.lineplot(points, x="said", y="mean", ax=axis, label=ARMS[name].label, legend=False, **look)
        axis.set(xlabel=f"probability given to '{positive}'", ylabel=f"share of cases that are '{positive}'")
        axis.set_title(f"n = {predictions['case_id'].nunique()} test cases, 1/{bins} a point")
        figure.legend(loc="outside right upper")
        return aggregate(figure)


def training_figure(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Training curves from training/<arm>.csv: SFT loss, and loss, reward margin and log-probabilities of DPO."""
    with style():
        figure, axes = grid(2, 2, 6.2, 4.4)
        for axis, title in zip(axes.flat, _PANELS, strict=True):
            axis.set(title=title)
        for name, log in logs.items():
            arm, pairs = ARMS[name], ARMS[name].rows == "pairs"
            before = None if pairs else logs.get(arm.start)  # SFT goes on where SFT ended
            steps = log["step"] + (0 if before is None else before["step"].max())
            for column, panel, dash in _DPO if pairs else _SFT:
                label = arm.label + (", rejected answers" if dash == "--" else "")
                if len(log) and column in log:
                    look = {"color": arm.colour, "linestyle": dash, "linewidth": 1.2, "label": label, "errorbar": None}
                    sns.lineplot(x=steps, y=log[column], ax=axes.flat[panel], legend=False, **look)
        for axis in axes.flat:
            axis.set(xlabel="optimiser step", ylabel="")
        sft, dpo = axes.flat[:2]
        sft.set_yscale("log")  # the first steps would flatten the rest
        sft.yaxis.set_major_formatter("{x:g}")
        # a loss with an added SFT term does not start at ln 2: no line that would mislead
        if dpo.lines and abs(dpo.lines[0].get_ydata()[0] - math.log(2)) < 0.05:
            dpo.axhline(math.log(2), color=INK, linewidth=0.8, linestyle=":")
            aside(dpo, 1, math.log(2), "ln 2: no preference yet", ha="right", va="top")
        handles = {line.get_label(): line for axis in axes.flat for line in axis.lines if line.get_label()[0] != "_"}
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=3)
        for axis in [axis for axis in axes.flat if not axis.lines]:
            axis.remove()
        if not handles:
            figure.suptitle("no training was logged")
        return aggregate(figure)


def grid(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Figure, Any]:
    """A figure of so many inches and its axes, by row and column; ``how`` is given to `Figure.subplots`."""
    figure = Figure((width, height), layout="constrained")  # none of pyplot's: a notebook would show that twice
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def draw(axis: Axes, rows: pd.DataFrame, looks: Mapping[str, Arm], line: str = "") -> None:
    """Interval, marker and, on the right, text of every row (columns y, value, low, high, look, text)."""
    edge = {"s": 34, "edgecolor": INK, "linewidth": 0.8, "zorder": 3, "clip_on": False}
    for name, part in rows.groupby("look", sort=False):
        look = looks[name]
        axis.hlines(part["y"], part["low"], part["high"], color=line or look.colour, linewidth=1.5, zorder=2)
        shown = {"color": look.colour, "marker": look.marker, "label": look.label, "legend": False}
        sns.scatterplot(part, x="value", y="y", ax=axis, **shown, **edge)
    axis.set(xlabel="", ylabel="")
    for y, text in zip(rows["y"], rows["text"], strict=True):
        aside(axis, 1.04, y, text)


def _panels(table: pd.DataFrame, width: float, said: str) -> Figure:
    """A panel per title (rows) and model (columns): a row per arm, first on top, with its numbers on the right.

    An arm that was run anywhere has a row in each; a baseline where it has a value.
    """
    titles, models = table["title"].unique(), table["model"].unique()
    known = table.dropna(subset=["value", "low"], how="all").groupby("title")["arm"].agg(set)
    of = {t: (set(table["arm"]) & set(ARMS)) | (known.get(t, set()) & set(BASELINES)) for t in titles}
    tall = [0.65 + 0.17 * len(of[title]) for title in titles]
    table = table.assign(text=[_numbers(cell) for cell in table.to_dict("records")], look=table["arm"])
    with style():
        figure, axes = grid(len(titles), len(models), width, sum(tall) + 0.6, height_ratios=tall)
        for row, title in zip(axes, titles, strict=True):
            arms = [arm for arm in _LOOKS if arm in of[title]]
            for axis, model in zip(row, models, strict=True):
                here = table[(table["title"] == title) & (table["model"] == model)].set_index("arm").reindex(arms)
                numbers = here[["value", "low", "high"]].astype(float).dropna(subset=["value"])
                here = here.assign(y=range(len(arms)), **numbers).fillna({"text": "no value"})
                draw(axis, here, _LOOKS, INK)
                axis.set_yticks(range(len(arms)), [_LOOKS[arm].label for arm in arms] if axis is row[0] else [])
                top = here["high"].max()
                axis.set(ylim=(len(arms) - 0.4, -0.6), xlim=(0, 1.1 * top if top > 1 else 1))
                axis.grid(axis="y", visible=False)
                axis.set_title(first_capital(title.replace("_", " ")), pad=11)
                seeds = here["seeds"].max()
                counts = f"n = {range_of(here['n'])} cases, {seeds:.0f} seed{'s' if seeds > 1 else ''}"
                _above(axis, "not run" if math.isnan(seeds) else counts, 3, fontsize=SMALL, color="#555555")
        for axis, model in zip(axes[0], models, strict=True):
            _above(axis, model_name(model), 27, fontsize=10, fontweight="bold")
        figure.supxlabel(said, fontsize=SMALL, x=0.01, ha="left")
        few = table.groupby(["title", "model"])["n"].max().between(1, SMALLEST_COUNT - 1)
        return aggregate(figure, enough=not few.any())


def _numbers(cell: Mapping[str, Any]) -> str:
    """A value with its interval; a masked one is a limit and has none."""
    value, low, high = (math.nan if cell[key] is None else cell[key] for key in ("value", "low", "high"))
    digits = 1 if value > 1 else 2  # a length in words, or a share
    interval = "" if math.isnan(value + low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return (value_text(cell, digits) or "no value") + interval


def _above(axis: Axes, text: str, points: float, **options: Any) -> None:
    axis.annotate(text, (0, 1), (0, points), "axes fraction", textcoords="offset points", **options)


def aside(axis: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Write beside the axes: ``x`` in widths of them, ``y`` in data."""
    look = {"va": "center", "fontsize": SMALL, "color": INK} | options
    axis.text(x, y, text, transform=axis.get_yaxis_transform(), **look)


def range_of(values: pd.Series) -> str:
    """Smallest and largest count as words."""
    counted = values[values > 0]  # an arm without a value has none
    low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
    return f"{low}" if low == high else f"{low} to {high}"


def first_capital(text: str) -> str:
    """``text`` as a sentence begins: unlike `str.capitalize` it leaves the other letters alone."""
    return text[:1].upper() + text[1:]


def model_name(model: str) -> str:
    """A model's name; of a long one what follows the last slash."""
    return model if len(model) <= 24 else model.split("/")[-1]
