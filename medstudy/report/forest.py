"""The forest plot: what DPO adds in the study, kinds of task, tasks and cells; and a study's figures as files."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medstudy.arms import ARMS, Arm
from medstudy.evaluation.metrics import TRIAGE
from medstudy.evaluation.scopes import BETWEEN
from medstudy.evaluation.verdict import INVALID
from medstudy.evaluation.views import gains, published, told_under
from medstudy.params import MARGIN
from medstudy.report import figures
from medstudy.show import aggregate
from medstudy.tasks.labels import ClinicalTriage

#: Scopes of a forest plot from the top, and its contrasts: those that a verdict rests on, and the control that has
#: seen the same cases as DPO (not of tasks and cells of several models, which would be more than a page).
_SCOPES = {"study": "Study", "kind": "Kinds of task", "task": "Tasks, over models", "cell": "Each model"}
_DRAWN = ["dpo-sft_more", *(f"dpo-{arm}" for arm in ARMS["dpo"].against if arm != "sft_more")]


def save_study(study: Path, tables: Mapping[str, pd.DataFrame], margin: float) -> dict[str, Figure]:
    """Draw and write the study's figures, ``figures/study`` and ``figures/forest`` (`comparison.study_tables`)."""
    primary = tables["tables/contrasts.csv"].query("primary")[["task", "metric"]].drop_duplicates()
    drawn = {"study": figures.study_figure(tables["tables/metrics.csv"].merge(primary))}
    drawn["forest"] = forest_figure(tables["verdicts.csv"], margin)
    for name, figure in drawn.items():
        figures.save(figure, study / "figures" / name)
    return drawn


def forest_figure(verdicts: pd.DataFrame, margin: float = MARGIN) -> Figure:
    """What DPO adds, from rows of verdicts.csv: study and kinds of task first, then tasks and cells; margin shaded.

    Of outcomes where less is better the sign is turned, so that right is better everywhere. Published differences
    of the same tasks stand apart, hollow, at the end.
    """
    parts = [*(_judged(verdicts, scope) for scope in _SCOPES), _published(verdicts)]
    rows = pd.concat(parts, ignore_index=True)
    # one wide interval would press all others together: it runs off the edge, with an arrow; values never do
    limits, values = rows[["low", "high"]].astype(float).abs().stack(), rows["difference"].astype(float).abs()
    most = min(1.05 * limits.max(), 3 * limits.quantile(interpolation="higher"))
    reach = max(2 * margin, most, 1.1 * values.max())
    looks = {f"dpo-{name}": Arm(f"against {arm.label}", arm.colour, arm.marker) for name, arm in ARMS.items()}
    looks["published"] = Arm("published, over SFT", "none", "o")
    with figures.style():
        figure, [[axis]] = figures.grid(1, 1, figures.COLUMN, 1)
        axis.axvspan(-margin, margin, color=figures.FAINT, zorder=0, label=f"too small to matter (±{margin:g})")
        axis.axvline(0, color=figures.INK, linewidth=0.8)
        rows["y"], height = _placed(axis, rows)
        for edge, arrow, beyond in ((-reach, "<", rows["low"] < -reach), (reach, ">", rows["high"] > reach)):
            for line in rows[beyond].itertuples():
                axis.plot(edge, line.y, arrow, color=looks[line.look].colour, markersize=5, clip_on=False)
        figures.draw(axis, rows.assign(value=rows["difference"]), looks)
        axis.set(xlim=(-reach, reach), ylim=(height, -0.8), yticks=[])
        axis.set_xlabel("← DPO worse      DPO better →", fontweight="bold")
        figure.set_size_inches(figures.COLUMN, 0.142 * height + 1.3)
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1, fontsize=8)
        cases, seeds = figures.range_of(verdicts["n_cases"]), figures.range_of(verdicts["n_seeds"])
        n = f"n = {cases} cases, {seeds} seed{'s' * (seeds != '1')}; both arms answer the same."
        figure.supxlabel(f"{n}\n{figures.OVER}", fontsize=figures.SMALL, x=0.01, ha="left")
        return aggregate(figure)


def _judged(verdicts: pd.DataFrame, scope: str) -> pd.DataFrame:
    """Rows that are told under a scope, in the order in which contrasts are drawn, under their heading."""
    told = told_under(verdicts)
    models = any(of == "cell" for of, _ in told.values())
    wide = {key for (of, _), key in told.items() if of in ("study", "kind") or not models}
    drawn = {key: _DRAWN if key in wide else _DRAWN[:2] for key in told.values() if key[0] == scope}
    places = zip(verdicts["scope"], verdicts["name"], verdicts["contrast"], strict=True)
    rows = verdicts.loc[[contrast in drawn.get((of, name), ()) for of, name, contrast in places]]
    rows = rows.dropna(subset=["low", "high"])
    rows = rows.sort_values("contrast", key=lambda contrasts: contrasts.map(_DRAWN.index), kind="stable")
    heading = _SCOPES[scope] if models else _SCOPES[scope].removesuffix(", over models")
    rows = gains(rows).assign(heading=heading, look=rows["contrast"])
    rows.loc[rows["verdict"] == INVALID, ["difference", "low", "high", "text"]] = *[math.nan] * 3, INVALID
    return rows


def _published(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Published differences of DPO and SFT for a study's tasks; ratings, on another scale, as text alone."""
    tasks = verdicts.loc[verdicts["scope"] == "task", "name"].unique()
    known = pd.concat(published(task, "llama mistral") for task in ["", *tasks])
    wide = known.pivot_table("value", ["task", "outcome", "metric", "model"], "arm", sort=False)
    rows = wide.reindex(columns=["sft", "dpo"]).dropna().reset_index().rename(columns={"task": "name"})
    rated, gain = rows["metric"] == "likert_1_5", rows["dpo"] - rows["sft"]
    units = rated.map({True: ", 1 to 5", False: ""})
    text = [f"{value:+.2f} {model}{unit}" for value, model, unit in zip(gain, rows["model"], units, strict=True)]
    rows = rows.assign(difference=gain.mask(rated), low=math.nan, high=math.nan, text=text)
    return rows.assign(heading="Published, over SFT", look="published")


def _forest_name(name: str, outcome: str) -> str:
    """What stands left of a row: two short lines at most."""
    if name == BETWEEN:
        return "Open-ended minus\nclassification"
    task, _, model = name.partition(", ")
    part = outcome.removesuffix("_macro_f1")
    of_triage = part in (*ClinicalTriage.outcomes, *TRIAGE)
    first = "All tasks" if task == "study" else figures.first_capital(task.removeprefix("clinical_").replace("_", " "))
    first += f": {part.replace('_', '-')}" if of_triage else ""
    return f"{first}\n{figures.model_name(model)}" if model else first


def _placed(axis: Axes, rows: pd.DataFrame) -> tuple[pd.Series, float]:
    """Write headings and labels; return the height at which each row is drawn, and that of the whole."""
    heights, y = rows["difference"] * 0, 0.0
    for heading, part in rows.groupby("heading", sort=False):
        axis.axhline(y - 0.55, color="#BBBBBB", linewidth=0.6, zorder=0)
        figures.aside(axis, -0.04, y, heading, ha="right", fontsize=8.5, fontweight="bold")
        y += 1.2
        for of, lines in part.groupby(["name", "outcome"], sort=False):
            tall = max(2, len(lines))
            figures.aside(axis, -0.04, y + (tall - 1) / 2, _forest_name(*of), ha="right", fontsize=8.5, linespacing=1)
            heights[lines.index] = [y + (tall - len(lines)) / 2 + i for i in range(len(lines))]
            y += tall + 0.3
    return heights, y
