"""From predictions to metrics.json and contrasts.json of a run, and to what a study needs of a model and task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from medstudy.arms import CONTRASTS, TRAINED
from medstudy.data.cases import SMALLEST_COUNT
from medstudy.evaluation.metrics import Labels, auroc, case_sums, small_count, task_metrics, value_of
from medstudy.evaluation.predictions import Answers, Pair
from medstudy.evaluation.statistics import Estimate, Limits, Line, estimates
from medstudy.tasks.base import Metric

Metrics = dict[str, dict[str, dict[str, Any]]]
#: Kinds of metric from whose value no count of cases can be told.
TELL_NO_COUNT = ("f1", "mean")


def evaluate(
    predictions: pd.DataFrame, task: str, labels: Labels, positive: str | None
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics and contrasts of one run (a `predictions_table`), in the shape of metrics.json and contrasts.json.

    ``labels``: of each outcome, from the data card, urgency from least to most urgent; ``positive``: the one whose F1
    is reported when there are two. `PredictionsError`: the table cannot be compared fairly, or scored.
    """
    measured = measure([predictions], task, labels, positive)
    rows = [m.row(pair) for m in measured for pair in m.pairs]
    return values(measured), sorted(rows, key=lambda row: CONTRASTS.index(tuple(row["contrast"].split("-"))))


def measure(predictions: Sequence[pd.DataFrame], task: str, labels: Labels, positive: str | None) -> list[Measured]:
    """Every metric of ``task`` over the runs of one model, which differ in their seed alone."""
    answers, found = Answers.collect(list(predictions)), []
    for metric in task_metrics(task, labels, positive):
        if not metric.optional or all(metric.source in table for table in predictions):
            terms = {arm: [case_sums(metric, by[arm], labels) for by in answers.frames] for arm in answers.arms}
            found.append(Measured(metric, answers, terms))
    return found


def values(measured: Sequence[Measured]) -> Metrics:
    """Arm -> metric -> value with a 95 % interval (mean over seeds, where there are several)."""
    found: Metrics = {arm: {} for arm in measured[0].answers.arms}
    # an untrained arm is the same whatever the seed, or nearly so
    families = ["trained" if arm in TRAINED else arm for arm in found]
    for one in measured:
        hidden = [one.masked(arm) is not None for arm in found]
        for arm, estimate in zip(found, estimates([one.line(arm) for arm in found], families, hidden), strict=True):
            found[arm][one.metric.name] = one.entry(arm, estimate)
    return found


@dataclass(frozen=True)
class Measured:
    """One metric's terms: ``terms[arm][seed]`` by case, ``sums[arm]`` added up (units, seeds, labels, terms)."""

    metric: Metric
    answers: Answers
    terms: dict[str, list[np.ndarray]]

    @cached_property
    def sums(self) -> dict[str, np.ndarray]:
        sums = {}
        for arm, by_seed in self.terms.items():
            sums[arm] = np.zeros((len(self.answers.groups), len(by_seed), *by_seed[0].shape[1:]))
            for seed, (units, by_case) in enumerate(zip(self.answers.units, by_seed, strict=True)):
                np.add.at(sums[arm][:, seed], units, by_case)
        return sums

    def line(self, of: str | Pair) -> Line:
        """An arm's value, or the difference of two arms, with the jackknife over groups of cases."""
        if not isinstance(of, str):
            first, second = self.line(of[0]), self.line(of[1])
            return Line(first.by_seed - second.by_seed, first.influence - second.influence)
        units = len(self.answers.groups)
        if self.metric.kind == "auroc":
            weights = np.vstack([np.ones(units), 1 - np.eye(units)])
            by_seed = zip(self.terms[of], self.answers.units, strict=True)
            drawn = np.stack([auroc(terms, weights[:, index]) for terms, index in by_seed], axis=-1)
        else:
            total = self.sums[of].sum(axis=0)
            drawn = value_of(self.metric, np.concatenate([total[None], total - self.sums[of]]))
        without = drawn[1:] - drawn[1:].mean(axis=0)  # NaN where the value hangs on a single unit: no interval
        return Line(drawn[0], np.sqrt((units - 1) / units) * without.T)

    @property
    def pairs(self) -> list[Pair]:
        """The contrasts that may be shown; where only parsed answers count, the arms' cases differ."""
        if self.metric.kind == "share_of_parsed":
            return []
        return [pair for pair in self.answers.pairs if not any(map(self.masked, pair))]

    def masked(self, arm: str) -> Limits | None:
        """What is shown of a number that tells a small count of a private source; the primary outcome always is.

        Of a share, limits; of a kind that is not known to tell no count, nothing where one of its sums is small.
        """
        if self.answers.shareable or self.metric.primary or self.metric.kind in TELL_NO_COUNT:
            return None
        if self.metric.kind == "auroc":  # of few pairs each value has one number of positives that it can come from
            positives = [terms[:, 0, 1].sum() for terms in self.terms[arm]]
            return (0.0, 1.0) if any(small_count(n, self.answers.n_cases) for n in positives) else None
        by_seed, whole = self.sums[arm].sum(axis=0), self.answers.n_cases
        # of some cases alone: how many these are, or the others, would be told with the value
        if self.metric.kind == "share_of_parsed" and any(small_count(n, whole) for n in by_seed[:, 0, 1]):
            return 0.0, 1.0
        if self.metric.kind.startswith("share"):
            few = [small_count(*terms[0, :2]) for terms in by_seed]
            if not any(few):
                return None
            # a mean over seeds would give a small count of one of them away
            exact = [(hits / n, hits / n) if n else (0.0, 1.0) for hits, n in by_seed[:, 0, :2]]
            low, high = np.mean([masked or known for masked, known in zip(few, exact, strict=True)], axis=0)
            return float(low), float(high)
        sums = np.round(by_seed, 6)
        return (0.0, 1.0) if ((sums > 0) & (sums < SMALLEST_COUNT)).any() else None

    def entry(self, arm: str, estimate: Estimate) -> dict[str, Any]:
        """One cell of metrics.json."""
        hits, counted = self.sums[arm].sum(axis=(0, 1))[0, :2]  # of a share
        some = self.metric.kind == "share_of_parsed" or (not counted and self.metric.kind in ("share", "mean"))
        n = round(counted / len(self.answers.frames)) if some else self.answers.n_cases
        if masked := self.masked(arm):
            few = {"n": self.answers.n_cases, "note": f"fewer than {SMALLEST_COUNT} cases on one side: not shown"}
            return {"value": None, "low": _number(masked[0]), "high": _number(masked[1])} | few
        limits = estimate.interval()
        if self.metric.kind.startswith("share") and self.answers.independent and n:
            limits = proportion_confint(hits, n, method="wilson")
        note = {} if np.isfinite(limits).all() else {"note": "no case is counted, or one group: no interval"}
        return {"value": _number(estimate.value)} | self._within(limits, 0.0) | {"n": n} | note

    def changed(self, pair: Pair) -> list[tuple[int, int]]:
        """Cases that the first arm gained and lost, training by training; of a share alone."""
        terms = zip(*(self.terms[arm] for arm in pair), strict=True) if self.metric.kind == "share" else ()
        more = [first[:, 0, 0] - second[:, 0, 0] for first, second in terms]
        return [(int((x > 0).sum()), int((x < 0).sum())) for x in more]

    def few_differ(self, pair: Pair) -> bool:
        """Whether, of a private source, few answers differ in a training: an exact error would tell how many."""
        both = zip(*(self.terms[arm] for arm in pair), strict=True)
        differ = [int((first != second).any(axis=(1, 2)).sum()) for first, second in both]
        told = (*differ, *(n for changed in self.changed(pair) for n in changed))
        return not self.answers.shareable and any(0 < n < SMALLEST_COUNT for n in told)

    def row(self, pair: Pair, estimate: Estimate | None = None) -> dict[str, Any]:
        """One row of contrasts.json; without an estimate by this model and task alone.

        From the error the answers that differ could be counted: that of a private source is rounded up where it is of
        one training or few differ, and so are p and the limits that come from it. Few differing answers are not told.
        """
        line, seeds = self.line(pair), len(self.answers.frames)
        few = self.few_differ(pair)
        estimate = estimate or estimates([line], hidden=[few])[0]
        counts: dict[str, int] = {}
        if self.metric.kind == "share" and np.isfinite(estimate.value):
            gained, lost = map(sum, zip(*self.changed(pair), strict=True))
            counts = {"discordant": gained + lost, "gained": gained, "lost": lost}
        test, p, rounded = ("t over cases" if seeds == 1 else "t over seeds and cases"), None, ""
        if few or (seeds == 1 and not self.answers.shareable):
            estimate, counts, rounded = estimate.coarse(), {} if few else counts, ", error rounded up"
        if not np.isfinite(estimate.value):
            test, rounded = "none: an arm has no value", ""
        elif counts and self.answers.independent:
            test, p = "exact McNemar", float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)
        else:
            p = estimate.p
        row = {"contrast": "-".join(pair), "metric": self.metric.name, "primary": self.metric.primary}
        row |= {"difference": _number(estimate.value), **self._within(estimate.interval(), -1.0)}
        row |= {"p": _number(p), "test": test + rounded}
        row |= {"n": self.answers.n_cases, "units": len(self.answers.groups), "seeds": seeds}
        return row | {"by_seed": [_number(d) for d in line.by_seed]} | counts

    def _within(self, limits: Limits, lowest: float) -> dict[str, float | None]:
        low, high = np.clip(limits, lowest, 1.0) if self.metric.bounded else limits
        return {"low": _number(low), "high": _number(high)}


def _number(x: float | None) -> float | None:
    """Six significant digits, so that tables do not differ in the last bit between machines; None for NaN."""
    return float(f"{x:.6g}") if x is not None and np.isfinite(x) else None
