"""What is measured for each task, as sums over cases, so that leaving out cases is a subtraction."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd

from medstudy.data.cases import SMALLEST_COUNT
from medstudy.tasks import TASK_TYPES
from medstudy.tasks.base import Metric

Labels = dict[str, list[str]]

#: Answers that were read although they were not in the exact form; left out where nobody looked.
RESCUED = Metric("rescued", "share", "score_rescued", optional=True)
#: An arm whose answers could be read less often than this has no share of under- and over-triage.
FEWEST_READ = 0.5
#: Errors of triage, with the direction in which urgency was missed.
TRIAGE = {"under_triage": -1, "over_triage": 1}
LOWER_IS_BETTER = {"brier", "unparsed", *TRIAGE}
_NAMES = {"unparsed": "unparsed answers", "accuracy_parsed": "accuracy of parsed answers", "length": "words per answer"}
_NAMES |= {"brier": "Brier score", "auroc": "AUROC", "rescued": "answers read though not in the asked-for form"}
_NAMES |= {name: name.replace("_", "-") for name in TRIAGE}


class PredictionsError(ValueError):
    """A predictions table cannot be scored; the message names what is wrong and the remedy."""


def metric_name(name: str) -> str:
    """What sentences and figures call a metric: ``provider_macro_f1`` is "provider macro-F1"."""
    words = name.replace("macro_f1", "macro-F1").replace("rouge", "ROUGE-").replace("_", " ")
    words = " ".join("F1" if word == "f1" else word for word in words.split())
    return _NAMES.get(name, words) + (", lower is better" if name in LOWER_IS_BETTER else "")


def single_outcome(labels: Labels) -> str | None:
    """The outcome that has probabilities, AUROC and baselines: the only one with labels, whatever its name."""
    return next(iter(labels)) if len(labels) == 1 else None


def task_metrics(task: str, labels: Labels, positive: str | None) -> list[Metric]:
    """The metrics of ``task``, of the outcome that the card names where they leave it open.

    F1 of the positive label replaces macro-F1 where there are two labels.
    """
    metrics = [m if m.source else replace(m, source=next(iter(labels))) for m in (*TASK_TYPES[task].metrics, RESCUED)]
    known = labels.get(single_outcome(labels) or "", [])
    if positive is None or len(known) != 2:
        return [m for m in metrics if m.kind != "auroc"]
    named = {"f1": {"name": "f1", "label": positive}, "auroc": {"label": positive}}
    return [replace(m, **named.get(m.kind, {})) for m in metrics]


def small_count(hits: float, n: float) -> tuple[float, float] | None:
    """Limits to show instead of a share that tells a count of 1 to 10, of the hits or of the others; else None."""
    few = SMALLEST_COUNT / n if n else 0.0
    if 0 < round(hits) < SMALLEST_COUNT:
        return 0.0, min(few, 1.0)
    return (max(1 - few, 0.0), 1.0) if 0 < round(n - hits) < SMALLEST_COUNT else None


def case_sums(metric: Metric, frame: pd.DataFrame, labels: Labels) -> np.ndarray:
    """Per-case terms of ``metric`` for one arm, shape (cases, labels, terms), to be added up over cases.

    Terms are true positives, false positives and false negatives of each label for F1, (score, is positive) for AUROC,
    which is no function of their sums, and (value, counted) otherwise. Every case counts, except in
    ``share_of_parsed``: an answer that was not parsed is a miss of its gold label and a hit of none, and neither
    under- nor over-triage. Of an arm that was read less often than `FEWEST_READ` no case is counted as either: a model
    that says nothing is not one that errs on neither side.
    """
    if metric.kind == "f1":
        gold, said = _answers(frame, metric.source)
        if unknown := set(gold) - set(labels[metric.source]):
            raise PredictionsError(
                f"gold {metric.source} {sorted(unknown)} is not among {labels[metric.source]}; add it to the card"
            )
        names = np.array([metric.label] if metric.label else labels[metric.source], dtype=object)
        is_gold, is_said = gold[:, None] == names, said[:, None] == names
        return np.stack([is_gold & is_said, ~is_gold & is_said, is_gold & ~is_said], axis=-1).astype(float)
    parsed = (frame["status"] == "parsed").to_numpy()
    counted = parsed if metric.kind == "share_of_parsed" else np.ones(len(frame))
    if metric.kind == "auroc":
        counted = _answers(frame, single_outcome(labels) or "")[0] == metric.label
        values = _column(frame, metric.source)
    elif metric.source == "unparsed":  # out of range included: either way there is no answer to use
        values = ~parsed
    elif metric.source in TRIAGE:
        level = {label: number for number, label in enumerate(labels["urgency"])}
        pairs = zip(*_answers(frame, "urgency"), strict=True)
        values = np.array([level[said] - level[gold] if said else 0 for gold, said in pairs])
        values = values * TRIAGE[metric.source] > 0
        counted = counted * (parsed.mean() >= FEWEST_READ)
    else:
        values = _column(frame, metric.source)
    kept = values if metric.kind == "auroc" else values * counted
    return np.stack([kept, counted], axis=-1).astype(float)[:, None, :]


def value_of(metric: Metric, sums: np.ndarray) -> np.ndarray:
    """The metric from summed terms (..., labels, terms) -> (...); NaN where no case is counted.

    Macro-F1 averages over the labels present in gold, as sklearn's ``f1_score(average="macro",
    labels=<those>, zero_division=0)``; a label without any case in a resample leaves that resample's mean.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric.kind != "f1":
            return sums[..., 0, 0] / sums[..., 0, 1]
        hits, false, missed = np.moveaxis(sums, -1, 0)
        present = hits + missed > 0
        f1 = np.where(present, 2 * hits / (2 * hits + false + missed), 0.0)
    return f1.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)


def auroc(terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of weighted cases (ties half), as scikit-learn's but for many draws at once.

    ``terms``: (cases, 1, 2) from `case_sums`; ``weights``: how often each case is counted, (draws, cases). Shape
    (draws,); NaN where a draw has one class only.
    """
    scores, positive = terms[:, 0, 0], terms[:, 0, 1] == 1
    above, below = scores[positive][:, None], scores[~positive][None]
    wins = (above > below) + 0.5 * (above == below)
    high, low = weights[:, positive], weights[:, ~positive]
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((high @ wins) * low).sum(axis=1) / (high.sum(axis=1) * low.sum(axis=1))


def score(metric: Metric, frame: pd.DataFrame, labels: Labels) -> float:
    """The metric of one arm's rows."""
    return float(value_of(metric, case_sums(metric, frame, labels).sum(axis=0)))


def _answers(frame: pd.DataFrame, outcome: str) -> tuple[np.ndarray, np.ndarray]:
    """Gold and answer of one outcome, row by row; the answer is "" where none was parsed."""
    gold = [json.loads(text)[outcome] for text in frame["gold"]]
    said = [json.loads(text).get(outcome, "") for text in frame["answer"]]
    return np.array(gold, dtype=object), np.where(frame["status"] == "parsed", np.array(said, dtype=object), "")


def _column(frame: pd.DataFrame, name: str) -> np.ndarray:
    if name not in frame or frame[name].isna().any():
        raise PredictionsError(f"column '{name}' is missing or has empty cells; score an unparsed answer 0")
    return frame[name].to_numpy(float)
