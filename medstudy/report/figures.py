"""Figures from saved tables: one style, one colour and marker per arm, one way to save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, BASELINES
from medstudy.evaluation.metrics import answers
from medstudy.evaluation.verdict import METRIC_NAMES, published
from medstudy.params import MARGIN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours fall in lightness from base to dpo (readable in grey); hues suit the colour-blind.
ARM_COLOURS = dict(zip(ARMS, ("#DEDEDE", "#E6AB2B", "#4A9CCB", "#1F6391", "#6E1030"), strict=True))
ARM_COLOURS |= dict.fromkeys(BASELINES, "white")  # no arms: hollow
ARM_MARKERS = dict(zip((*ARMS, *BASELINES), "ovsD^XPp", strict=True))
_NAMES = ("base", "few-shot", "SFT", "SFT continued", "DPO", "always the commonest")
ARM_NAMES = dict(zip((*ARMS, *BASELINES), (*_NAMES, "logistic regression", "gradient boosting"), strict=True))
#: Inches: text width of an A4 page.
A4_WIDTH = 7.5
_INK, _FAINT, _SMALL = "#333333", "#E6E6E6", 7
_UNBOUNDED = ("length",)
#: How far a forest plot reaches at most, in medians of the intervals' limits.
_REACH = 3.0
#: Outcome of published_results.csv that stands beside a metric of ours.
_PUBLISHED_AS = {
    "f1": "label",
    "macro_f1": "label",
    "accuracy": "diagnosis",
    "factual_f1": "quality",
    "provider_macro_f1": "provider",
    "urgency_macro_f1": "urgency",
}
_PUBLISHED = (
    "Filled: this study, 95 % intervals over test cases (and trainings, with several seeds). Hollow: "
    "published values\n(Savage et al., JMIR 2025;27:e76048, abstract), other patients and larger models: "
    "for orientation."
)


def style() -> AbstractContextManager[None]:
    """The one style, as a context: fonts that come with matplotlib, quiet axes, stable file contents."""
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 8,
            "axes.titlesize": 9,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#888888",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": _FAINT,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "figure.titlesize": 10,
            "figure.titleweight": "bold",
            "savefig.dpi": 200,
            "svg.hashsalt": "medstudy",
            "pdf.fonttype": 42,
        }
    )


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


def arms_figure(metrics: Mapping[str, Mapping[str, Any]], names: Sequence[str], title: str = "") -> Figure:
    """One run: every arm's value and 95 % interval, a panel per metric in ``names`` (from metrics.json).

    Baselines, where ``metrics`` holds some (baselines.json), come last, hollow.
    """
    arms = [arm for arm in (*ARMS, *BASELINES) if arm in metrics]
    with style():
        figure, axes = _grid(len(names), 1, A4_WIDTH, len(names) * (0.55 + 0.21 * len(arms)) + 0.4)
        for axis, name in zip(axes[:, 0], names, strict=True):
            cells = {arm: metrics[arm][name] for arm in arms}
            _arm_rows(axis, cells, name)
            axis.set_title(f"{_capital(METRIC_NAMES.get(name, name))} ({_n(cells)}; bars: 95 % intervals)")
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def study_figure(table: pd.DataFrame) -> Figure:
    """The study: a panel per outcome (rows) and model (columns), every arm with its 95 % interval.

    Args:
        table: one row per task, model, metric, arm with value, low, high, n, seeds (`verdict.metrics_table`),
            already cut down to the metrics to draw. Published values of the same outcome and model family
            are drawn hollow beside them; ratings on another scale are written under their panel.
    """
    outcomes = list(dict.fromkeys(zip(table["task"], table["metric"], strict=True)))
    models = list(dict.fromkeys(table["model"]))
    arms = [arm for arm in ARMS if arm in set(table["arm"])]
    height = len(outcomes) * (0.62 + 0.17 * len(arms)) + 0.7
    with style():
        figure, axes = _grid(len(outcomes), len(models), max(A4_WIDTH, 1.3 + 3.1 * len(models)), height)
        for row, outcome in enumerate(outcomes):
            for column, model in enumerate(models):
                _study_panel(axes[row, column], table, *outcome, model, arms)
                if column:
                    axes[row, column].set_yticklabels([])
        for axis, model in zip(axes[0], models, strict=True):
            _above(axis, _model_name(model), 27, fontsize=10, fontweight="bold")
        if any(len(_beside(*outcome, model)) for outcome in outcomes for model in models):
            figure.supxlabel(_PUBLISHED, fontsize=_SMALL, x=0.01, ha="left")
    return figure


def forest_figure(contrasts: pd.DataFrame, margin: float = MARGIN) -> Figure:
    """What DPO adds over SFT, and over SFT continued as long, per outcome and model; the margin is shaded.

    Args:
        contrasts: `verdict.contrasts_table`, rows of primary metrics; other contrasts are left out.
    """
    drawn = contrasts[contrasts["contrast"].isin(["dpo-sft", "dpo-sft_more"])].dropna(subset=["low", "high"])
    rows = dict(list(drawn.groupby(["task", "metric", "model"], sort=False)))
    outcomes = list(dict.fromkeys(key[:2] for key in rows))
    keys = sorted(rows, key=lambda key: outcomes.index(key[:2]))  # the models of an outcome side by side
    with style():
        figure, axes = _grid(1, 1, A4_WIDTH, 0.42 * len(rows) + 1.5)
        axis = axes[0, 0]
        too_small = f"too small to matter (within {margin:g})"
        axis.axvspan(-margin, margin, color=_FAINT, zorder=0, label=too_small)
        axis.axvline(0, color=_INK, linewidth=0.8)
        # one wide interval would press all others together: it runs off the edge, with an arrow
        limits = drawn[["low", "high"]].abs()
        reach = max(2 * margin, min(1.05 * limits.max().max(), _REACH * limits.stack().median()))
        for y, key in enumerate(keys):
            _forest_row(axis, y, rows[key], reach)
        names = [f"{_capital(t)}\n{METRIC_NAMES.get(m, m)}, {_model_name(model)}" for t, m, model in keys]
        _rows_from_top(axis, names)
        axis.set_xlim(-reach, reach)
        space = " " * 10
        axis.set_xlabel(f"← DPO worse{space}difference on the same test cases{space}DPO better →")
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=3)
        _above(axis, "difference [95 % interval], Holm p", 4, x=1.03, fontsize=_SMALL, fontweight="bold")
    return figure


def calibration_figure(predictions: pd.DataFrame, positive: str, bins: int = 5) -> Figure:
    """How often the positive label is right where an arm gives it a probability (``score_p_positive``).

    Points are bins of equally many test cases; on the diagonal an arm means what it says.
    """
    from sklearn.calibration import calibration_curve

    with style():
        figure, axes = _grid(1, 1, 0.6 * A4_WIDTH, 0.55 * A4_WIDTH)
        axis = axes[0, 0]
        axis.plot([0, 1], [0, 1], ":", color=_INK, linewidth=0.8)
        for arm in [arm for arm in ARMS if arm in set(predictions["arm"])]:
            rows = predictions[predictions["arm"] == arm]
            truth = answers(rows, "label")[0] == positive
            share, said = calibration_curve(truth, rows["score_p_positive"], n_bins=bins, strategy="quantile")
            axis.plot(said, share, color=ARM_COLOURS[arm], linewidth=1)
            for x, y in zip(said, share, strict=True):
                _marker(axis, x, y, arm)
            axis.lines[-1].set_label(ARM_NAMES[arm])
        axis.set(xlabel=f"probability given to '{positive}'", ylabel=f"share of cases that are '{positive}'")
        figure.legend(loc="outside right upper")
    return figure


def search_figure(tables: Mapping[str, pd.DataFrame | None]) -> Figure | None:
    """What was tried on validation (`search.tried`), a panel an arm, best on top; None if nothing was."""
    shown = {arm: table for arm, table in tables.items() if table is not None}
    if not shown:
        return None
    with style():
        figure, axes = _grid(len(shown), 1, A4_WIDTH, 0.9 * len(shown) + 0.2 * sum(map(len, shown.values())))
        for axis, (arm, table) in zip(axes[:, 0], shown.items(), strict=True):
            ordered = table.sort_values("validation_score", ascending=False, kind="stable")
            settings = [c for c in table if c not in ("validation_score", "cases", "chosen")]
            names = [", ".join(f"{s} {row[s]:g}" for s in settings) for _, row in ordered.iterrows()]
            for y, row in enumerate(ordered.to_dict("records")):
                fill = "full" if row["chosen"] else "none"
                _marker(axis, row["validation_score"], y, arm, fillstyle=fill)
                _beside_row(axis, y, f"{row['validation_score']:.2f}{' chosen' * row['chosen']}")
            _rows_from_top(axis, names)
            axis.set_title(f"{ARM_NAMES[arm]}: primary outcome on {ordered['cases'].iloc[0]} validation cases")
            axis.set_xlim(0, 1)
    return figure


def learning_figure(points: pd.DataFrame) -> Figure:
    """What DPO adds over SFT against the number of pairs it had, with 95 % intervals.

    Args:
        points: columns pairs, metric, difference, low, high (`learning_curve.learning_curve`), and
            task, model and seed where there are several.
    """
    groups = [c for c in ("task", "model", "metric", "seed") if c in points]
    with style():
        figure, axes = _grid(1, 1, A4_WIDTH, 3)
        axis = axes[0, 0]
        axis.axhline(0, color=_INK, linewidth=0.8)
        for number, (names, rows) in enumerate(points.groupby(groups, sort=False)):
            at = rows["pairs"] * (1 + 0.01 * number)  # side by side, where points would hide each other
            label = ", ".join(_capital(METRIC_NAMES.get(str(n), str(n))) for n in names)
            label += " (seed)" if "seed" in groups else ""
            reach = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
            axis.errorbar(at, rows["difference"], reach, marker="^", linewidth=1.2, label=label)
        axis.set(xlabel="preference pairs", ylabel="DPO - SFT on the test cases")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def training_figure(logs: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Training curves from training/<arm>.csv: SFT loss, DPO loss, reward margin, log-probabilities."""
    with style():
        figure, axes = _grid(2, 2, A4_WIDTH, 4.6)
        (sft, loss), (margins, logps) = axes
        _sft_loss(sft, logs)
        _dpo_curves(loss, "DPO loss", logs.get("dpo"), ["loss"])
        _dpo_curves(margins, "DPO reward margin, chosen - rejected", logs.get("dpo"), ["rewards/margins"])
        _dpo_curves(logps, "DPO log-probability of the answers", logs.get("dpo"), ["logps/chosen", "logps/rejected"])
        # a loss with an added SFT term does not start at ln 2: no line that would mislead
        if loss.lines and abs(loss.lines[0].get_ydata()[0] - math.log(2)) < 0.05:
            loss.axhline(math.log(2), color=_INK, linewidth=0.8, linestyle=":", label="ln 2: no preference yet")
            loss.legend()
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def trainings_figure(logs: pd.DataFrame) -> Figure:
    """DPO training of every run: loss, margin and log-probability of the chosen answers, a row a task.

    Args:
        logs: `comparison.training_logs`.
    """
    keys = {"loss": "loss", "rewards/margins": "reward margin", "logps/chosen": "log p(chosen)"}
    tasks, models = list(dict.fromkeys(logs["task"])), list(dict.fromkeys(logs["model"]))
    with style():
        figure, axes = _grid(len(tasks), len(keys), A4_WIDTH, 1.35 * len(tasks) + 0.5)
        for (task, model, _), rows in logs.groupby(["task", "model", "seed"], sort=False):
            line = ("-", "--", ":", "-.")[models.index(model) % 4]
            for axis, key in zip(axes[tasks.index(task)], keys, strict=True):
                axis.plot(rows["step"], rows[key], line, color=ARM_COLOURS["dpo"], linewidth=0.9, label=model)
        for row, task in zip(axes, tasks, strict=True):
            row[0].set_ylabel(_capital(task).replace(" ", "\n", 1))
        for axis, name in zip(axes[0], keys.values(), strict=True):
            axis.set_title(name)
        for axis in axes[-1]:
            axis.set_xlabel("optimiser step")
        handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=len(models))
    return figure


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    plt.close(figure)  # the caller shows or saves it; left open, a notebook would show it twice
    return figure, axes


def _rows_from_top(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def _arm_rows(axis: Axes, cells: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    """A row per arm, first on top: marker, interval, and the numbers on the right."""
    bounded = metric not in _UNBOUNDED
    for y, (arm, cell) in enumerate(cells.items()):
        value, low, high = (cell.get(key) for key in ("value", "low", "high"))
        if _missing(value):
            _beside_row(axis, y, "no value")
            continue
        text = "{:.2f}" if bounded else "{:.1f}"
        if not _missing(low):
            axis.plot([low, high], [y, y], color=_INK, linewidth=1.2, zorder=2)
            text += " [{:.2f}, {:.2f}]" if bounded else " [{:.1f}, {:.1f}]"
        _marker(axis, value, y, arm)
        _beside_row(axis, y, text.format(value, low, high))
    _rows_from_top(axis, [ARM_NAMES[arm] for arm in cells])
    largest = max((cell["high"] for cell in cells.values() if not _missing(cell.get("high"))), default=1.0)
    axis.set_xlim(0, 1 if bounded else 1.1 * largest or 1)


def _study_panel(axis: Axes, table: pd.DataFrame, task: str, metric: str, model: str, arms: list[str]) -> None:
    here = table[(table["task"] == task) & (table["metric"] == metric) & (table["model"] == model)]
    cells = {arm: {} for arm in arms} | {row["arm"]: row for row in here.to_dict("records")}
    _arm_rows(axis, cells, metric)
    axis.set_title(f"{_capital(task)}: {METRIC_NAMES.get(metric, metric)}", pad=11)
    count = f"{_n(cells)}, {_seeds(int(here['seeds'].iloc[0]))}" if len(here) else "not run"
    _above(axis, count, 3, fontsize=_SMALL, color="#555555")
    beside = _beside(task, metric, model)
    for row in beside[(beside["metric"] != "likert_1_5") & beside["arm"].isin(arms)].to_dict("records"):
        _marker(axis, row["value"], arms.index(row["arm"]), row["arm"], fillstyle="none", markersize=8, zorder=4)
    rated = beside[beside["metric"] == "likert_1_5"]
    if len(rated):
        pairs = zip(rated["arm"], rated["value"], strict=True)
        values = ", ".join(f"{ARM_NAMES[arm]} {value:.2f}" for arm, value in pairs)
        axis.set_xlabel(f"published, rated 1 to 5: {values}", fontsize=_SMALL)


def _beside(task: str, metric: str, model: str) -> pd.DataFrame:
    """The published values of this panel: the same outcome of the same task, on whatever scale."""
    rows = published(task, model).dropna(subset=["value"])
    return rows[rows["outcome"] == _PUBLISHED_AS.get(metric)]


def _forest_row(axis: Axes, y: int, here: pd.DataFrame, reach: float) -> None:
    for row in here.to_dict("records"):
        over_sft = row["contrast"] == "dpo-sft"
        arm, name, at = (
            ("dpo", "DPO - SFT", y - 0.17) if over_sft else ("sft_more", "DPO - SFT continued as long", y + 0.17)
        )
        axis.plot([row["low"], row["high"]], [at, at], color=ARM_COLOURS[arm], linewidth=1.5)
        for beyond, edge, arrow in ((row["low"] < -reach, -reach, "<"), (row["high"] > reach, reach, ">")):
            if beyond:
                axis.plot(edge, at, arrow, color=ARM_COLOURS[arm], markersize=5, clip_on=False)
        if abs(row["difference"]) <= reach:
            _marker(axis, row["difference"], at, arm, label=name)
        # + 0.0 turns a rounded -0.0 into 0.0
        middle, low, high = (f"{round(row[key], 2) + 0.0:+.2f}" for key in ("difference", "low", "high"))
        p = "" if _missing(row["p_holm"]) else f"  p {_p(row['p_holm'])}"
        _beside_row(axis, at, f"{middle} [{low}, {high}]{p}", ARM_COLOURS[arm])


def _sft_loss(axis: Axes, logs: Mapping[str, pd.DataFrame]) -> None:
    axis.set(title="SFT loss, then continued", xlabel="optimiser step")
    start = 0.0
    for arm in ("sft", "sft_more"):
        log = logs.get(arm)
        if log is not None and len(log):
            axis.plot(start + log["step"], log["loss"], color=ARM_COLOURS[arm], label=ARM_NAMES[arm])
            start += float(log["step"].iloc[-1])
    _legend(axis)


def _dpo_curves(axis: Axes, title: str, log: pd.DataFrame | None, keys: Sequence[str]) -> None:
    axis.set(title=title, xlabel="optimiser step")
    for key, line in zip(keys, ("-", "--"), strict=False):
        if log is not None and len(log) and key in log:
            axis.plot(log["step"], log[key], line, color=ARM_COLOURS["dpo"], label=key.split("/")[-1])
    _legend(axis, several=len(keys) > 1)


def _legend(axis: Axes, several: bool = True) -> None:
    if not axis.lines:
        axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, ha="center", color="#777777")
        axis.set(xticks=[], yticks=[], xlabel="")
    elif several:
        axis.legend()


def _marker(axis: Axes, x: float, y: float, arm: str, **options: Any) -> None:
    look = {
        "markersize": 6,
        "markeredgecolor": _INK,
        "markeredgewidth": 0.8,
        "zorder": 3,
        "linestyle": "none",
    }
    axis.plot(x, y, ARM_MARKERS[arm], color=ARM_COLOURS[arm], clip_on=False, **look | options)


def _above(axis: Axes, text: str, points: float, x: float = 0, **options: Any) -> None:
    axis.annotate(text, (x, 1), (0, points), "axes fraction", textcoords="offset points", **options)


def _beside_row(axis: Axes, y: float, text: str, colour: str = _INK) -> None:
    axis.text(1.03, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=_SMALL, color=colour)


def _n(cells: Mapping[str, Mapping[str, Any]]) -> str:
    counts = sorted({int(cell["n"]) for cell in cells.values() if cell})
    return f"n = {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} cases"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")


def _model_name(model: str) -> str:
    return model if len(model) <= 24 else model.split("/")[-1]


def _missing(value: Any) -> bool:
    return value is None or math.isnan(value)
