"""Was DPO worth it? One verdict per task and model, from pooled contrasts (`medstudy.evaluation.evaluate.pooled`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from medstudy.arms import FAMILY
from medstudy.evaluation.metrics import metric_name
from medstudy.evaluation.statistics import smallest_detectable
from medstudy.params import MARGIN

if TYPE_CHECKING:
    import pandas as pd

WORTH, ENOUGH, HARMS, INVALID = "DPO worth it", "SFT is enough", "DPO harms", "not valid"
ALPHA = 0.05
#: More seeds than this are not asked for; cases are then what is missing.
MOST_SEEDS = 20
#: Model family in our ids -> its name in published_results.csv.
_PUBLISHED_MODELS = {"llama": "Llama3-8B", "mistral": "Mistral-7B-v2"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A verdict with its evidence; ``missing`` orders inconclusive ones by how much they miss."""

    label: str
    sentence: str
    missing: float = math.inf


@dataclass(frozen=True)
class Cell:
    """One task x model of a study: what `pooled` gave, and what is known of its runs.

    ``failed_gates`` names every gate that failed in any seed, or that was not checked. ``cost``: means over
    seeds of ``pairs``, ``pair_tokens`` (tokens in them) and ``dpo_seconds`` (of DPO training).
    """

    task: str
    model: str
    metrics: dict[str, dict[str, Row]]
    contrasts: list[Row]
    seeds: int
    failed_gates: Sequence[str] = ()
    cost: dict[str, float] = field(default_factory=dict)


def metrics_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """tables/metrics.csv: one line per task, model, metric and arm."""
    import pandas as pd

    return pd.DataFrame(
        {"task": cell.task, "model": cell.model, "metric": name, "arm": arm, **entry, "seeds": cell.seeds}
        for cell in cells
        for arm, entries in cell.metrics.items()
        for name, entry in entries.items()
    )


def contrasts_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """tables/contrasts.csv: one line per task, model, metric and contrast.

    ``p_holm`` stands where a claim may rest on it: primary metrics, contrasts of `FAMILY`, corrected for all of them.
    """
    import pandas as pd
    from statsmodels.stats.multitest import multipletests

    table = pd.DataFrame({"task": cell.task, "model": cell.model, **row} for cell in cells for row in cell.contrasts)
    if table.empty:
        return table
    p = table.loc[table["primary"] & table["contrast"].isin(FAMILY), "p"].dropna()
    adjusted = multipletests(p, method="holm")[1] if len(p) else []
    table.insert(table.columns.get_loc("smallest_detectable") + 1, "p_holm", pd.Series(adjusted, p.index, dtype=float))
    return table


def verdict_table(cells: Sequence[Cell], margin: float = MARGIN) -> pd.DataFrame:
    """verdicts.csv: one line per task x model x primary outcome; the verdict is that of the task x model."""
    import pandas as pd

    primary = [row for row in contrasts_table(cells).to_dict("records") if row["primary"]]
    family = sum(not _absent(row["p_holm"]) for row in primary)
    lines = []
    for cell in cells:
        rows = [row for row in primary if (row["task"], row["model"]) == (cell.task, cell.model)]
        decided = verdict(rows, cell.failed_gates, margin, family)
        for outcome in dict.fromkeys(row["metric"] for row in rows):
            by_contrast = {row["contrast"]: row for row in rows if row["metric"] == outcome}
            lines.append(_line(cell, outcome, by_contrast, decided) | {"margin": margin})
    return pd.DataFrame(lines)


def _line(cell: Cell, outcome: str, rows: dict[str, Row], decided: Verdict) -> Row:
    line = {"task": cell.task, "model": cell.model, "outcome": outcome}
    line |= {"n_cases": next(iter(rows.values()))["n"], "n_seeds": cell.seeds}
    line |= {arm: cell.metrics.get(arm, {}).get(outcome, {}).get("value") for arm in ("sft", "sft_more", "dpo")}
    for name in ("dpo-sft", "dpo-sft_more"):
        row = rows.get(name, {})
        line |= {f"{name.replace('-', '_')}_{key}": row.get(key) for key in ("difference", "low", "high", "p_holm")}
    line["smallest_detectable"] = rows.get("dpo-sft", {}).get("smallest_detectable")
    line["gates"] = f"failed: {', '.join(cell.failed_gates)}" if cell.failed_gates else "passed"
    return line | {"verdict": decided.label, "sentence": decided.sentence} | cell.cost


def verdict(
    contrasts: Sequence[Row], failed_gates: Sequence[str] = (), margin: float = MARGIN, family: int = 1
) -> Verdict:
    """The verdict of one task x model from its primary contrasts with ``p_holm`` (`contrasts_table`).

    With several primary outcomes (triage) each is decided by itself, then: harm in any is harm; else worth
    it in any is worth it; enough only if it is in all. Both are in the sentence.

    Args:
        margin: differences smaller than this do not matter (same scale as the metric).
        family: number of tests Holm corrects for; what is said to be missing plans for it.
    """
    outcomes = list(dict.fromkeys(row["metric"] for row in contrasts))
    if not outcomes:
        return Verdict(INVALID, "No contrast of a primary outcome: the arms sft and dpo are needed")
    parts = {
        name: _outcome({r["contrast"]: r for r in contrasts if r["metric"] == name}, margin, family)
        for name in outcomes
    }
    said = (part.sentence if len(parts) == 1 else f"{part.label} ({part.sentence})" for part in parts.values())
    sentence = "; ".join(f"{metric_name(name)}: {text}" for name, text in zip(parts, said, strict=True))
    if failed_gates:
        return Verdict(INVALID, f"Gates failed: {', '.join(failed_gates)}. Not to be relied on: {sentence}")
    return replace(_combined(list(parts.values())), sentence=sentence)


def published(task: str, model: str) -> pd.DataFrame:
    """Published values of Savage et al. (JMIR 2025;27:e76048) for a model of this family; may be empty.

    Other data and larger models: for display beside a study's own numbers, never mixed with them.
    """
    import pandas as pd

    table = pd.read_csv(str(files("medstudy") / "published_results.csv"))
    names = [name for family, name in _PUBLISHED_MODELS.items() if family in model.lower()]
    return table[(table["task"] == task) & table["model"].isin(names)].reset_index(drop=True)


def _outcome(rows: dict[str, Row], margin: float, family: int) -> Verdict:
    """One outcome; the order of the questions is the order of what matters to a patient."""
    if "dpo-sft" not in rows:
        return Verdict(INVALID, "the arms sft and dpo are needed")
    over_sft, used = rows["dpo-sft"], [rows[name] for name in ("dpo-sft", "dpo-sft_more") if name in rows]
    if any(_absent(row["low"]) for row in used):
        return Verdict("inconclusive: more cases needed", f"{over_sft['n']} cases give no interval")
    evidence = _evidence(*used)
    missed = max(row["smallest_detectable"] for row in used)
    shows = f"; with 80 % power this many cases show differences from {missed:.2f} up"
    # one test at ALPHA is enough to warn of harm; a gain has to survive Holm, in both contrasts
    if over_sft["high"] < 0 and over_sft["p"] < ALPHA:
        return Verdict(HARMS, evidence)
    for row, control in zip(used, ("SFT", "SFT continued as long"), strict=False):
        # two one-sided tests: the 90 % interval lies within the margin
        if -margin < row["equivalence_low"] and row["equivalence_high"] < margin:
            return Verdict(ENOUGH, f"{evidence}; DPO and {control} differ by less than {margin:g}{shows}")
    if len(used) == 2 and all(row["low"] > 0 and row["p_holm"] < ALPHA for row in used):
        if over_sft["seeds"] < 2:
            return Verdict("inconclusive: more seeds needed", f"{evidence}; one training is no evidence")
        return Verdict(WORTH, evidence)
    control = "" if len(used) == 2 else "; no sft_more arm, so a gain could be mere extra training"
    missing, label = max((_missing(row, margin, ALPHA / family) for row in used), key=lambda m: m[0])
    return Verdict(f"inconclusive: {label}", evidence + shows + control, missing)


def _missing(row: Row, margin: float, alpha: float) -> tuple[float, str]:
    """What would find the observed difference, or the margin if that is larger, with 80 % power.

    Seeds, where the cases are enough and `MOST_SEEDS` more will do: trainings cost less than cases. Else
    cases, where the seeds are enough. The number orders what is missing: cases after seeds.
    """
    needed = (max(abs(row["difference"]), margin) / smallest_detectable(1.0, alpha)) ** 2
    seed = 0.0 if _absent(row["seed_error"]) else row["seed_error"] ** 2
    case = row["error"] ** 2 - seed
    if seed and case < needed:
        seeds = math.ceil(row["seeds"] * (seed / (needed - case) - 1))
        if 0 < seeds <= MOST_SEEDS:
            return seeds / 1000, f"about {seeds} more seeds"
    if seed >= needed:
        return math.inf, "more seeds and more cases needed"
    cases = max(10, math.ceil((row["n"] * case / (needed - seed) - row["n"]) / 10) * 10)
    return cases, f"about {cases} more cases"


def _evidence(over_sft: Row, over_more: Row | None = None) -> str:
    signed = "{difference:+.3f} [{low:+.3f}, {high:+.3f}] over SFT"
    more = f", {signed.format_map(over_more)} continued as long" if over_more else ""
    seeds = f"{over_sft['seeds']} seed"
    if over_sft["seeds"] > 1:
        seeds += f"s (over SFT by seed: {', '.join(f'{d:+.2f}' for d in over_sft['by_seed'])})"
    return f"{signed.format_map(over_sft)}{more}; {over_sft['n']} cases, {seeds}"


def _combined(parts: list[Verdict]) -> Verdict:
    for label in (INVALID, HARMS, WORTH):
        if any(part.label == label for part in parts):
            return Verdict(label, "")
    return max((p for p in parts if p.label != ENOUGH), key=lambda part: part.missing, default=Verdict(ENOUGH, ""))


def _absent(value: float | None) -> bool:
    return value is None or math.isnan(value)
