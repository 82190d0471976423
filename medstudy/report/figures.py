"""Figures from saved tables, by seaborn: one style, one look per arm (`medstudy.arms`), one way to save."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, BASELINES
from medstudy.evaluation.metrics import LOWER_IS_BETTER, metric_name, small_count
from medstudy.evaluation.views import published, value_text
from medstudy.params import MARGIN
from medstudy.show import aggregate

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches: text width of an A4 page, and of a figure with one column, which is still read on a telephone.
A4_WIDTH, COLUMN = 7.5, 4.8
_INK, _FAINT, _SMALL = "#333333", "#E6E6E6", 7.5
_EDGE = {"s": 34, "edgecolor": _INK, "linewidth": 0.8, "zorder": 3, "clip_on": False}
_OVER = "95 % intervals: other test cases, and other trainings where there are several seeds."
#: Scopes of a forest plot from the top, each with its heading; and what is drawn of which.
_SCOPES = {"study": "Study", "kind": "Kinds of task", "task": "Tasks, over models", "cell": "Each model"}
_DRAWN = {"dpo-sft_more": set(_SCOPES), "dpo-sft": set(_SCOPES), "dpo-sft_chosen": {"study", "kind"}}
#: How far a forest plot reaches at most, in medians of the intervals' limits.
_REACH = 3.0
#: Panels of a training: title, what the arm is trained on, column of its log, what is added to the line's name.
_TRAINING = (
    ("SFT loss, then its controls (log scale)", "cases", "loss", ""),
    ("DPO loss", "pairs", "loss", ""),
    ("Reward margin, chosen - rejected", "pairs", "rewards/margins", ""),
    ("Log-probability of the answers", "pairs", "logps/chosen", ""),
    ("Log-probability of the answers", "pairs", "logps/rejected", ", rejected answers"),
)


def style() -> AbstractContextManager[None]:
    """The one style, as a context: fonts that come with matplotlib, quiet axes, stable file contents."""
    import matplotlib as mpl
    import seaborn as sns

    look = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "legend.frameon": False}
    look |= {"axes.titleweight": "bold", "axes.titlelocation": "left"}
    look |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "grid.color": _FAINT}
    look |= {"savefig.dpi": 200, "svg.hashsalt": "medstudy", "pdf.fonttype": 42}
    return mpl.rc_context(sns.axes_style("whitegrid") | sns.plotting_context("paper", rc={"axes.titlesize": 9}) | look)


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write ``path`` (without suffix) as png, svg and pdf; the same figure gives the same bytes, no date, no host."""
    nameless = {
        ".png": {"Software": None},
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files = [Path(f"{path}{suffix}") for suffix in nameless]
    with style():
        for file in files:
            figure.savefig(file, metadata=nameless[file.suffix])
    return files


def save_study(study: Path, tables: Mapping[str, pd.DataFrame], margin: float) -> dict[str, Figure]:
    """Draw and write the study's figures, ``figures/study`` and ``figures/forest`` (`comparison.study_tables`)."""
    primary = tables["tables/contrasts.csv"].query("primary")[["task", "metric"]].drop_duplicates()
    drawn = {"study": study_figure(tables["tables/metrics.csv"].merge(primary))}
    drawn["forest"] = forest_figure(tables["verdicts.csv"], margin)
    for name, figure in drawn.items():
        save(figure, study / "figures" / name)
        with style():
            aggregate(figure)  # saving counts as a change
    return drawn


def forest_figure(verdicts: pd.DataFrame, margin: float = MARGIN) -> Figure:
    """What DPO adds, from rows of verdicts.csv: study and kinds of task first, then tasks and cells; margin shaded.

    Of outcomes where less is better the sign is turned, so that right is better everywhere. Published differences
    of the same tasks stand apart, hollow, at the end.
    """
    rows = [*(row for scope in _SCOPES for row in _forest_rows(verdicts, scope)), *_published_rows(verdicts)]
    limits = sorted(
        abs(value) for _, lines in rows for value in lines[["low", "high"]].to_numpy().flat if value == value
    )
    # one wide interval would press all others together: it runs off the edge, with an arrow
    median = limits[len(limits) // 2] if limits else 0.0
    reach = max(2 * margin, min(1.05 * max(limits, default=0.0), _REACH * median))
    heights = [max(2, len(lines)) + 0.3 if len(lines) else 1.2 for _, lines in rows]
    with style():
        figure, [[axis]] = _grid(1, 1, COLUMN, 0.142 * sum(heights) + 1.3)
        axis.axvspan(-margin, margin, color=_FAINT, zorder=0, label=f"too small to matter (±{margin:g})")
        axis.axvline(0, color=_INK, linewidth=0.8)
        axis.set(xlim=(-reach, reach), ylim=(sum(heights), -0.8), yticks=[])
        axis.set_xlabel("← DPO worse      DPO better →", fontweight="bold")
        for i, (name, lines) in enumerate(rows):
            _forest_row(axis, sum(heights[:i]), name, lines, reach)
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=2, columnspacing=1, fontsize=8)
        n = f"n = {_range(verdicts['n_cases'])} cases, {_range(verdicts['n_seeds'])} seeds; both arms answer the same."
        figure.supxlabel(f"{n}\n{_OVER}", fontsize=_SMALL, x=0.01, ha="left")
        return aggregate(figure)


def arms_figure(metrics: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """One run: every arm's value and 95 % interval, a panel per metric in ``names`` (from metrics.json).

    Baselines, where ``metrics`` holds some (baselines.json), come last, hollow.
    """
    import pandas as pd

    cells = ({"title": metric_name(m), "metric": m, "arm": a, **metrics[a].get(m, {})} for m in names for a in metrics)
    table = pd.DataFrame(cells).assign(model="", seeds=1)
    return _panels(table, COLUMN, "95 % intervals over test cases, for these trained models")


def study_figure(table: pd.DataFrame) -> Figure:
    """The study: a panel per outcome (rows) and model (columns), every arm with its 95 % interval.

    ``table``: rows of tables/metrics.csv, already cut down to the metrics to draw.
    """
    titles = table["task"].str.replace("_", " ") + ": " + table["metric"].map(metric_name)
    models = table["model"].nunique()
    return _panels(table.assign(title=titles), COLUMN if models == 1 else max(A4_WIDTH, 1.3 + 3.1 * models), _OVER)


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
        figure, [[axis]] = _grid(1, 1, COLUMN, 3.6)
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
    import matplotlib.pyplot as plt
    import seaborn as sns

    lines = _training_lines(logs)
    if lines is None:
        with style():
            figure, [[axis]] = _grid(1, 1, COLUMN, 1)
            axis.set(title="no training was logged", xticks=[], yticks=[])
            return aggregate(figure)
    looks = lines.drop_duplicates("line").set_index("line")
    look = {"hue": "line", "palette": looks["colour"].to_dict(), "style": "line", "dashes": looks["dashes"].to_dict()}
    look |= {"kind": "line", "errorbar": None, "linewidth": 1.2, "facet_kws": {"sharex": False, "sharey": False}}
    with style():
        grid = sns.relplot(lines, x="step", y="value", col="panel", col_wrap=2, **look)
        grid.set_titles("{col_name}").set_axis_labels("optimiser step", "")
        grid.figure.set_size_inches(6.2, 4.4)
        grid.figure.set_layout_engine("constrained")
        sns.move_legend(grid, "outside upper left", ncols=3, title=None)
    plt.close(grid.figure)  # the caller shows or saves it; left open, a notebook would show it twice
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


def _training_lines(logs: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """What was logged of `_TRAINING`, a row a step: panel, line and its look, step, value."""
    import pandas as pd

    lines = []
    for arm, log in logs.items():
        kind = "pairs" if ARMS[arm].rows == "pairs" else "cases"
        before = logs.get(ARMS[arm].start) if kind == "cases" else None  # SFT goes on where SFT ended
        steps = log["step"] + (0 if before is None else before["step"].max())
        for panel, rows, column, suffix in _TRAINING:
            if rows == kind and column in log:
                line = {"panel": panel, "line": ARMS[arm].label + suffix, "colour": ARMS[arm].colour}
                dashes = pd.Series([(3, 2) if suffix else ""] * len(log), log.index)
                lines.append(pd.DataFrame({"step": steps, "value": log[column], **line, "dashes": dashes}))
    return pd.concat(lines) if lines else None


def _look() -> dict[str, Any]:
    """What seaborn is told of arms: the same colour and marker everywhere."""
    looks = ARMS | BASELINES
    colours, markers = ({name: getattr(arm, of) for name, arm in looks.items()} for of in ("colour", "marker"))
    return {"hue": "arm", "style": "arm", "palette": colours, "markers": markers}


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    plt.close(figure)  # the caller shows or saves it; left open, a notebook would show it twice
    return figure, axes


def _panels(table: pd.DataFrame, width: float, said: str) -> Figure:
    """A panel per title (rows) and model (columns): a row per arm, first on top, with its numbers on the right."""
    titles, models = table["title"].unique(), table["model"].unique()
    arms = [arm for arm in ARMS | BASELINES if arm in set(table["arm"])]
    with style():
        figure, axes = _grid(len(titles), len(models), width, len(titles) * (0.65 + 0.17 * len(arms)) + 0.6)
        for row, title in zip(axes, titles, strict=True):
            for axis, model in zip(row, models, strict=True):
                here = table[(table["title"] == title) & (table["model"] == model)].set_index("arm").reindex(arms)
                _arm_rows(axis, here)
                axis.set_title(_capital(title), pad=11)
                seeds = here["seeds"].max()
                counts = f"n = {_range(here['n'])} cases, {seeds:.0f} seed{'s' if seeds > 1 else ''}"
                _above(axis, "not run" if math.isnan(seeds) else counts, 3, fontsize=_SMALL, color="#555555")
            for axis in row[1:]:
                axis.set_yticklabels([])
        for axis, model in zip(axes[0], models, strict=True):
            _above(axis, _model_name(model), 27, fontsize=10, fontweight="bold")
        figure.supxlabel(said, fontsize=_SMALL, x=0.01, ha="left")
        return aggregate(figure)


def _arm_rows(axis: Axes, cells: pd.DataFrame) -> None:
    """Marker, interval and numbers of every arm."""
    import seaborn as sns

    numbers = cells.reindex(columns=["value", "low", "high", "n"]).astype(float).assign(row=range(len(cells)))
    shown = numbers.dropna(subset=["value"]).rename_axis("arm").reset_index()
    axis.hlines(shown["row"], shown["low"], shown["high"], color=_INK, linewidth=1.2, zorder=2)
    if len(shown):
        sns.scatterplot(shown, x="value", y="row", ax=axis, legend=False, **_look(), **_EDGE)
    length = set(cells["metric"]) == {"length"}
    for cell in numbers.to_dict("records"):
        bare, digits = math.isnan(cell["value"]) or math.isnan(cell["low"]), 1 if length else 2
        interval = "" if bare else f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
        _aside(axis, 1.05, cell["row"], (value_text(cell, digits) or "no value") + interval)
    axis.set_yticks(range(len(cells)), [(ARMS | BASELINES)[arm].label for arm in cells.index])
    axis.set_ylim(len(cells) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="", ylabel="", xlim=(0, 1.1 * numbers["high"].max() if length else 1))


def _forest_rows(verdicts: pd.DataFrame, scope: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The heading of a scope, then its names, each with its contrasts from the top; a heading has none."""
    drawn = [contrast for contrast, scopes in _DRAWN.items() if scope in scopes]
    rows = verdicts[(verdicts["scope"] == scope) & verdicts["contrast"].isin(drawn)].dropna(subset=["low", "high"])
    if len(rows):
        yield _SCOPES[scope], rows[:0]
    for (name, outcome), lines in rows.groupby(["name", "outcome"], sort=False):
        if outcome in LOWER_IS_BETTER:
            lines = lines.assign(difference=-lines["difference"], low=-lines["high"], high=-lines["low"])
        numbers = lines[["difference", "low", "high"]].astype(float).round(2) + 0.0  # turns -0.0 into 0.0
        text = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*row) for row in numbers.to_numpy()]
        lines = lines.assign(text=text).sort_values("contrast", key=lambda contrasts: contrasts.map(drawn.index))
        yield _forest_name(str(name), str(outcome), scope), lines


def _published_rows(verdicts: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Published differences of DPO and SFT for a study's tasks; ratings, on another scale, as text alone."""
    import pandas as pd

    tasks = verdicts.loc[verdicts["scope"] == "task", "name"].unique()
    known = pd.concat(published(task, "llama mistral") for task in ["", *tasks])
    wide = known.pivot_table("value", ["task", "outcome", "metric", "model"], "arm", sort=False)
    wide = wide.reindex(columns=["sft", "dpo"]).dropna().reset_index()
    if wide.empty:
        return
    rated, gain = wide["metric"] == "likert_1_5", wide["dpo"] - wide["sft"]
    text = gain.map("{:+.2f} ".format) + wide["model"] + rated.map({True: ", 1 to 5", False: ""})
    wide = wide.assign(contrast="published", difference=gain.mask(rated), low=math.nan, high=math.nan, text=text)
    yield "Published, over SFT", wide[:0]
    for (task, outcome), lines in wide.groupby(["task", "outcome"], sort=False):
        parts = {"provider": "provider_macro_f1", "urgency": "urgency_macro_f1"}
        yield _forest_name(task, parts.get(outcome, outcome), "task"), lines


def _forest_name(name: str, outcome: str, scope: str) -> str:
    """What stands left of a row: two short lines at most."""
    if scope in ("study", "kind"):
        words = {"study": "All tasks", "open-ended minus classification": "Open-ended minus\nclassification"}
        return words.get(name, _capital(name))
    task, _, model = name.partition(", ")
    part = outcome.removesuffix("_macro_f1").replace("_", "-") if outcome.endswith(("_macro_f1", "_triage")) else ""
    first = _capital(task.removeprefix("clinical_")) + (f": {part}" if part else "")
    return f"{first}\n{_model_name(model)}" if model else first


def _forest_row(axis: Axes, y: float, name: str, lines: pd.DataFrame, reach: float) -> None:
    tall = max(2, len(lines))
    if lines.empty:
        axis.axhline(y - 0.55, color="#BBBBBB", linewidth=0.6, zorder=0)
        _aside(axis, -0.04, y, name, ha="right", fontsize=8.5, fontweight="bold")
    else:
        _aside(axis, -0.04, y + (tall - 1) / 2, name, ha="right", fontsize=8.5, linespacing=1)
    for place, line in enumerate(lines.to_dict("records")):
        at, other = y + place + (tall - len(lines)) / 2, ARMS.get(line["contrast"].partition("-")[2])
        colour, marker = (other.colour, other.marker) if other else ("none", "o")
        label = f"against {other.label}" if other else "published, over SFT"
        axis.plot([line["low"], line["high"]], [at, at], color=colour, linewidth=1.6)
        for beyond, edge, arrow in ((line["low"] < -reach, -reach, "<"), (line["high"] > reach, reach, ">")):
            if beyond:
                axis.plot(edge, at, arrow, color=colour, markersize=5, clip_on=False)
        if abs(line["difference"]) <= reach:
            axis.scatter(line["difference"], at, color=colour, marker=marker, label=label, **_EDGE)
        _aside(axis, 1.03, at, line["text"], fontsize=8)


def _above(axis: Axes, text: str, points: float, **options: Any) -> None:
    axis.annotate(text, (0, 1), (0, points), "axes fraction", textcoords="offset points", **options)


def _aside(axis: Axes, x: float, y: float, text: str, **options: Any) -> None:
    look = {"va": "center", "fontsize": _SMALL, "color": _INK} | options
    axis.text(x, y, text, transform=axis.get_yaxis_transform(), **look)


def _range(values: pd.Series) -> str:
    counted = values[values > 0]  # an arm without a value has none
    low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
    return f"{low}" if low == high else f"{low} to {high}"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")


def _model_name(model: str) -> str:
    return model if len(model) <= 24 else model.split("/")[-1]
