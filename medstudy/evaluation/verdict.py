"""Was DPO worth it? One verdict per task and model, from pooled contrasts (`medstudy.evaluation.evaluate.pooled`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from medstudy.evaluation.statistics import holm, smallest_detectable
from medstudy.params import MARGIN

if TYPE_CHECKING:
    import pandas as pd

WORTH = "DPO worth it"
ENOUGH = "SFT is enough"
HARMS = "DPO harms"
INVALID = "not valid"
#: More seeds than this are not asked for; cases are then what is missing.
MOST_SEEDS = 20
#: Contrasts of the Holm family; `few_shot-base` is shown, and no claim rests on it.
FAMILY = ("sft-base", "dpo-sft", "dpo-sft_more")

#: What sentences and figures call a metric.
METRIC_NAMES = {
    "f1": "F1",
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "brier": "Brier score, lower is better",
    "factual_f1": "factual F1",
    "factual_precision": "factual precision",
    "factual_recall": "factual recall",
    "provider_macro_f1": "provider macro-F1",
    "urgency_macro_f1": "urgency macro-F1",
    "under_triage": "under-triage, lower is better",
    "over_triage": "over-triage, lower is better",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "length": "words per answer",
    "unparsed": "unparsed answers, lower is better",
    "accuracy_parsed": "accuracy of parsed answers",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A verdict with its evidence; ``missing`` orders inconclusive ones by how much they miss."""

    label: str
    sentence: str
    missing: float | None = None


@dataclass(frozen=True)
class Cell:
    """One task x model of a study: what `pooled` gave, and what is known of its runs.

    ``failed_gates`` names every gate that failed in any seed, or that was not checked. The cost is given as
    means over seeds: preference pairs, tokens in them, seconds of DPO training.
    """

    task: str
    model: str
    metrics: dict[str, dict[str, Row]]
    contrasts: list[Row]
    seeds: int
    failed_gates: Sequence[str] = ()
    pairs: float = math.nan
    dpo_seconds: float = math.nan
    pair_tokens: float = math.nan


def with_holm(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with ``p_holm`` in their primary contrasts; family: task x model (x outcome) x contrast."""
    family = [row for cell in cells for row in cell.contrasts if _in_family(row)]
    adjusted = iter(holm([row["p"] for row in family]))
    return [
        replace(
            cell,
            contrasts=[{**r, "p_holm": float(next(adjusted))} if _in_family(r) else r for r in cell.contrasts],
        )
        for cell in cells
    ]


def verdict(
    contrasts: Sequence[Row],
    failed_gates: Sequence[str] = (),
    margin: float = MARGIN,
    alpha: float = 0.05,
    family: int = 1,
) -> Verdict:
    """The verdict of one task x model from its contrasts with ``p_holm`` (`with_holm`).

    With several primary outcomes (triage) each is decided by itself, then: harm in any is harm; else worth
    it in any is worth it; enough only if it is in all. Both are in the sentence.

    Args:
        margin: differences smaller than this do not matter (same scale as the metric).
        family: number of tests Holm corrects for; what is said to be missing plans for it.
    """
    outcomes = list(dict.fromkeys(row["metric"] for row in contrasts if row["primary"]))
    by_outcome = {
        name: _outcome({r["contrast"]: r for r in contrasts if r["metric"] == name}, margin, alpha, family)
        for name in outcomes
    }
    sentence = "; ".join(_said(name, part, len(outcomes)) for name, part in by_outcome.items())
    if failed_gates:
        return Verdict(INVALID, f"Gates failed: {', '.join(failed_gates)}. Not to be relied on: {sentence}")
    if not by_outcome:
        return Verdict(INVALID, "No contrast of a primary outcome: the arms sft and dpo are needed")
    return replace(_combined(list(by_outcome.values())), sentence=sentence)


def verdict_table(cells: Sequence[Cell], margin: float = MARGIN, alpha: float = 0.05) -> pd.DataFrame:
    """verdicts.csv: one line per task x model x primary outcome; the verdict is that of the task x model."""
    import pandas as pd

    family = sum(_in_family(row) for cell in cells for row in cell.contrasts)
    lines = []
    for cell in with_holm(cells):
        decided = verdict(cell.contrasts, cell.failed_gates, margin, alpha, family)
        outcomes = list(dict.fromkeys(row["metric"] for row in cell.contrasts if row["primary"]))
        lines += [_line(cell, name, decided) | {"margin": margin} for name in outcomes]
    return pd.DataFrame(lines)


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
    """tables/contrasts.csv: one line per task, model, metric and contrast; ``p_holm`` for the family."""
    import pandas as pd

    rows = ({"task": cell.task, "model": cell.model, **row} for cell in with_holm(cells) for row in cell.contrasts)
    return pd.DataFrame(rows)


def published(task: str, model: str) -> pd.DataFrame:
    """Published values of Savage et al. (JMIR 2025;27:e76048) for a model of this family; may be empty.

    Other data and larger models: for display beside a study's own numbers, never mixed with them.
    """
    import pandas as pd

    table = pd.read_csv(str(files("medstudy") / "published_results.csv"))
    families = {"Llama3-8B": "llama", "Mistral-7B-v2": "mistral"}
    same = table["model"].map(lambda name: families[name] in model.lower())
    return table[(table["task"] == task) & same].reset_index(drop=True)


def _in_family(row: Row) -> bool:
    return bool(row["primary"]) and row["contrast"] in FAMILY


def _outcome(rows: dict[str, Row], margin: float, alpha: float, family: int) -> Verdict:
    """One outcome; the order of the questions is the order of what matters to a patient."""
    over_sft, over_more = rows.get("dpo-sft"), rows.get("dpo-sft_more")
    if over_sft is None:
        return Verdict(INVALID, "the arms sft and dpo are needed")
    rows_used = [row for row in (over_sft, over_more) if row is not None]
    if any(row["low"] is None for row in rows_used):
        return Verdict("inconclusive: more cases needed", f"{over_sft['n']} cases give no interval")
    evidence = _evidence(over_sft, over_more)
    missed = max(row["smallest_detectable"] for row in rows_used)
    shows = f"; with 80 % power this many cases show differences from {missed:.2f} up"
    # one test at alpha is enough to warn of harm; a gain has to survive Holm, in both contrasts
    if over_sft["high"] < 0 and over_sft["p"] < alpha:
        return Verdict(HARMS, evidence)
    if _equivalent(over_sft, margin):
        return Verdict(ENOUGH, f"{evidence}; DPO and SFT differ by less than {margin:g}{shows}")
    if over_more is not None and _equivalent(over_more, margin):
        control = f"; DPO and SFT continued as long differ by less than {margin:g}"
        return Verdict(ENOUGH, evidence + control + shows)
    if len(rows_used) == 2 and all(_gain(row, alpha) for row in rows_used):
        if over_sft["seeds"] < 2:
            return Verdict("inconclusive: more seeds needed", f"{evidence}; one training is no evidence")
        return Verdict(WORTH, evidence)
    control = "" if over_more is not None else "; no sft_more arm, so a gain could be mere extra training"
    missing = max((_missing(row, margin, alpha / family) for row in rows_used), key=lambda m: m[0])
    return Verdict(f"inconclusive: {missing[1]}", evidence + shows + control, missing[0])


def _equivalent(row: Row, margin: float) -> bool:
    """Two one-sided tests: the 90 % interval lies within the margin."""
    return -margin < row["equivalence_low"] and row["equivalence_high"] < margin


def _gain(row: Row, alpha: float) -> bool:
    return row["low"] > 0 and row["p_holm"] < alpha


def _missing(row: Row, margin: float, alpha: float) -> tuple[float, str]:
    """What would find the observed difference, or the margin if that is larger, with 80 % power.

    Seeds, where the cases are enough and `MOST_SEEDS` more will do: trainings cost less than cases. Else
    cases, where the seeds are enough. The number orders what is missing: cases after seeds.
    """
    needed = (max(abs(row["difference"]), margin) / smallest_detectable(1.0, alpha)) ** 2
    seed = (row["seed_error"] or 0.0) ** 2
    case = row["error"] ** 2 - seed
    if seed and case < needed:
        seeds = math.ceil(row["seeds"] * (seed / (needed - case) - 1))
        if 0 < seeds <= MOST_SEEDS:
            return seeds / 1000, f"about {seeds} more seeds"
    if seed >= needed:
        return math.inf, "more seeds and more cases needed"
    cases = max(10, math.ceil((row["n"] * case / (needed - seed) - row["n"]) / 10) * 10)
    return cases, f"about {cases} more cases"


def _evidence(over_sft: Row, over_more: Row | None) -> str:
    parts = [f"{_signed(over_sft)} over SFT"]
    if over_more is not None:
        parts.append(f"{_signed(over_more)} over SFT continued as long")
    seeds = over_sft["by_seed"]
    by_seed = f" (over SFT by seed: {', '.join(f'{d:+.2f}' for d in seeds)})" if len(seeds) > 1 else ""
    return f"{', '.join(parts)}; {over_sft['n']} cases, {len(seeds)} seed{'s' * (len(seeds) > 1)}{by_seed}"


def _signed(row: Row) -> str:
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _said(name: str, part: Verdict, outcomes: int) -> str:
    start = f"{METRIC_NAMES.get(name, name)}: "
    return start + (f"{part.label} ({part.sentence})" if outcomes > 1 else part.sentence)


def _combined(parts: list[Verdict]) -> Verdict:
    for label in (INVALID, HARMS, WORTH):
        if any(part.label == label for part in parts):
            return Verdict(label, "")
    if all(part.label == ENOUGH for part in parts):
        return Verdict(ENOUGH, "")
    return max(
        (p for p in parts if p.label != ENOUGH),
        key=lambda part: math.inf if part.missing is None else part.missing,
    )


def _line(cell: Cell, outcome: str, decided: Verdict) -> Row:
    rows = {r["contrast"]: r for r in cell.contrasts if r["metric"] == outcome}
    some = next(iter(rows.values()))
    line = {
        "task": cell.task,
        "model": cell.model,
        "outcome": outcome,
        "n_cases": some["n"],
        "n_seeds": cell.seeds,
    }
    line |= {arm: cell.metrics.get(arm, {}).get(outcome, {}).get("value") for arm in ("sft", "sft_more", "dpo")}
    for name in ("dpo-sft", "dpo-sft_more"):
        row = rows.get(name, {})
        line |= {f"{name.replace('-', '_')}_{key}": row.get(key) for key in ("difference", "low", "high", "p_holm")}
    return line | {
        "smallest_detectable": rows.get("dpo-sft", {}).get("smallest_detectable"),
        "gates": f"failed: {', '.join(cell.failed_gates)}" if cell.failed_gates else "passed",
        "verdict": decided.label,
        "sentence": decided.sentence,
        "pairs": cell.pairs,
        "pair_tokens": cell.pair_tokens,
        "dpo_seconds": cell.dpo_seconds,
    }
