"""From predictions to metrics.json and contrasts.json of a run, and to what a study needs of a model and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medstudy.arms import CONTRASTS, TRAINED
from medstudy.data.cases import SMALLEST_COUNT
from medstudy.evaluation.answers import Answers, Pair
from medstudy.evaluation.metrics import Labels, auroc, case_sums, small_count, task_metrics, value_of
from medstudy.evaluation.statistics import Estimate, Limits, Line, estimates, wilson
from medstudy.show import aggregate
from medstudy.tasks.base import Metric

if TYPE_CHECKING:
    import pandas as pd

Metrics = dict[str, dict[str, dict[str, Any]]]


def evaluate(
    predictions: pd.DataFrame, task: str, labels: Labels, positive: str | None
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics and contrasts of one run, in the shape of metrics.json and contrasts.json.

    Args:
        predictions: one row per arm and case (`predictions.predictions_table`).
        labels: allowed answers of each outcome, from the data card; urgency from least to most urgent.
        positive: label whose F1 is reported when there are two.

    Raises:
        PredictionsError: the table cannot be compared fairly (`validate_predictions`) or scored.
    """
    measured = measure([predictions], task, labels, positive)
    rows = [m.row(pair, estimate) for m in measured for pair, estimate in m.contrasts().items()]
    return values(measured), sorted(rows, key=lambda row: CONTRASTS.index(tuple(row["contrast"].split("-"))))


def measure(predictions: Sequence[pd.DataFrame], task: str, labels: Labels, positive: str | None) -> list[Measured]:
    """Every metric of ``task`` over the runs of one model, which differ in their seed alone."""
    answers = Answers.collect(list(predictions))
    asked = task_metrics(task, labels, positive)
    known = [m for m in asked if not m.optional or all(m.source in table for table in predictions)]
    return [Measured.of(metric, answers, labels) for metric in known]


def values(measured: Sequence[Measured]) -> Metrics:
    """Arm -> metric -> value with a 95 % interval (mean over seeds, where there are several)."""
    found: Metrics = {arm: {} for arm in measured[0].answers.arms}
    for one in measured:
        # an untrained arm is the same whatever the seed, or nearly so
        families = ["trained" if arm in TRAINED else arm for arm in found]
        for arm, estimate in zip(found, estimates([one.line(arm) for arm in found], families), strict=True):
            found[arm][one.metric.name] = one.entry(arm, estimate)
    return found


def contrasts_view(contrasts: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Contrasts as a reader sees them: rounded, and no p of 0."""
    import pandas as pd

    columns = ["contrast", "metric", "difference", "low", "high", "p", "test", "n"]
    table = pd.DataFrame(contrasts)[columns].round(3)
    p = [p_text(row["p"]) for row in contrasts]
    return _of_enough(table.assign(p=p).set_index(columns[:2]), ["contrast", "metric", "test"])


def values_table(metrics: Metrics) -> pd.DataFrame:
    """The values alone: a row an arm or baseline, a column a metric, and the cases."""
    import pandas as pd

    texts = {arm: {name: value_text(cell) for name, cell in cells.items()} for arm, cells in metrics.items()}
    n = {arm: max(cell["n"] for cell in cells.values()) for arm, cells in metrics.items()}
    return _of_enough(pd.DataFrame(texts).T.fillna("").assign(n=n), [""])


def _of_enough(table: pd.DataFrame, words: Sequence[str]) -> pd.DataFrame:
    """Tagged, unless its values are of so few cases that they tell of single patients."""
    return aggregate(table, words) if len(table) and table["n"].max() >= SMALLEST_COUNT else table


def p_text(p: float | None) -> str:
    """A p value with three digits, never 0; empty where there is none."""
    return "" if p is None or np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def value_text(cell: Mapping[str, Any], digits: int = 3) -> str:
    """A cell of metrics.json as it is read: rounded, a limit where a small count is masked, empty without value."""
    if cell["value"] is not None and not np.isnan(cell["value"]):
        return f"{cell['value']:.{digits}f}"
    limits = cell["low"], cell["high"]
    if None in limits or np.isnan(limits).any():
        return ""
    return f"< {limits[1]:.{digits}f}" if limits[0] == 0 else f"> {limits[0]:.{digits}f}"


@dataclass(frozen=True)
class Measured:
    """One metric's terms: ``terms[arm][seed]`` by case, ``sums[arm]`` added up (units, seeds, labels, terms)."""

    metric: Metric
    answers: Answers
    terms: dict[str, list[np.ndarray]]
    sums: dict[str, np.ndarray]

    @classmethod
    def of(cls, metric: Metric, answers: Answers, labels: Labels) -> Measured:
        terms = {arm: [case_sums(metric, by_arm[arm], labels) for by_arm in answers.frames] for arm in answers.arms}
        sums = {}
        for arm, by_seed in terms.items():
            sums[arm] = np.zeros((len(answers.groups), len(by_seed), *by_seed[0].shape[1:]))
            for seed, (units, by_case) in enumerate(zip(answers.units, by_seed, strict=True)):
                np.add.at(sums[arm][:, seed], units, by_case)
        return cls(metric, answers, terms, sums)

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
        without = np.nan_to_num(drawn[1:] - drawn[1:].mean(axis=0))
        return Line(drawn[0], np.sqrt((units - 1) / units) * without.T)

    @property
    def pairs(self) -> list[Pair]:
        """The contrasts that may be shown; where only parsed answers count, the arms' cases differ."""
        if self.metric.kind == "share_of_parsed":
            return []
        return [pair for pair in self.answers.pairs if not any(map(self.masked, pair))]

    def contrasts(self) -> dict[Pair, Estimate]:
        """Of this model and task alone: nothing is learnt from other cells."""
        return {pair: estimates([self.line(pair)])[0] for pair in self.pairs}

    def entry(self, arm: str, estimate: Estimate) -> dict[str, Any]:
        """One cell of metrics.json."""
        hits, counted = self.sums[arm].sum(axis=(0, 1))[0, :2]
        whole = self.metric.kind in ("f1", "auroc") or counted
        parsed_only = self.metric.kind == "share_of_parsed"
        n = self.answers.n_cases if whole and not parsed_only else round(counted / len(self.answers.frames))
        limits = estimate.interval()
        if self.metric.kind in ("share", "share_of_parsed") and self.answers.independent and n:
            limits = wilson(hits, n)
        if masked := self.masked(arm):
            few = f"fewer than {SMALLEST_COUNT} cases on one side: not shown"
            return {"value": None, "low": _number(masked[0]), "high": _number(masked[1]), "n": n, "note": few}
        low, high = self._within(limits, 0.0)
        note = {} if np.isfinite(limits).all() else {"note": "no case is counted, or one group: no interval"}
        return {"value": _number(estimate.value), "low": low, "high": high, "n": n} | note

    def masked(self, arm: str) -> Limits | None:
        """What is shown of a share that tells a small count of a private source; the primary outcome always is."""
        if self.answers.shareable or self.metric.primary or not self.metric.kind.startswith("share"):
            return None
        hits, counted = self.sums[arm].sum(axis=(0, 1))[0, :2] / len(self.answers.frames)
        return small_count(hits, counted)

    def row(self, pair: Pair, estimate: Estimate) -> dict[str, Any]:
        """One row of contrasts.json.

        From the error of a share the discordant answers can be counted: where they are few and the source is
        private, it is rounded up, and so are p and the limits that come from it.
        """
        seeds = len(self.answers.frames)
        counts = self._discordant(pair) if np.isfinite(estimate.value) else None
        few = not self.answers.shareable and any(0 < n < SMALLEST_COUNT for n in counts or ())
        if few:
            estimate = estimate.coarse()
        test, p = self._test(estimate, None if few else counts)
        test += ", error rounded up" if few else ""
        low, high = self._within(estimate.interval(), -1.0)
        row = {"contrast": "-".join(pair), "metric": self.metric.name, "primary": self.metric.primary}
        row |= {"difference": _number(estimate.value), "low": low, "high": high, "p": _number(p), "test": test}
        row |= {"n": self.answers.n_cases, "units": len(self.answers.groups), "seeds": seeds}
        row["by_seed"] = [_number(d) for d in self.line(pair).by_seed]
        shown = counts and not few
        return row | ({"discordant": sum(counts), "gained": counts[0], "lost": counts[1]} if shown else {})

    def _test(self, estimate: Estimate, counts: tuple[int, int] | None) -> tuple[str, float | None]:
        """Name of the test and its p."""
        if not np.isfinite(estimate.value):
            return "none: an arm has no value", None
        if counts and self.answers.independent:
            from statsmodels.stats.contingency_tables import mcnemar

            return "exact McNemar", float(mcnemar([[0, counts[0]], [counts[1], 0]], exact=True).pvalue)
        return ("t over cases" if len(self.answers.frames) == 1 else "t over seeds and cases"), estimate.p

    def _discordant(self, pair: Pair) -> tuple[int, int] | None:
        """Answers that only the first and only the second arm has (right, unparsed, …), over all seeds."""
        if self.metric.kind != "share":
            return None
        first, second = (np.concatenate(self.terms[arm])[:, 0, 0] for arm in pair)
        return int((first > second).sum()), int((first < second).sum())

    def _within(self, limits: Limits, lowest: float) -> list[float | None]:
        return [_number(np.clip(x, lowest, 1.0) if self.metric.bounded else x) for x in limits]


def _number(x: float | None) -> float | None:
    """Six significant digits, so that tables do not differ in the last bit between machines; None for NaN."""
    return float(f"{x:.6g}") if x is not None and np.isfinite(x) else None
