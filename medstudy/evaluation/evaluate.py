"""From predictions to metrics.json and contrasts.json, for one run or for the seeds of one model and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medstudy.arms import CONTRASTS
from medstudy.data.cases import SMALLEST_COUNT
from medstudy.evaluation.answers import Answers, Pair
from medstudy.evaluation.metrics import Labels, auroc, case_sums, small_count, task_metrics, value_of
from medstudy.evaluation.statistics import (
    Estimate,
    Limits,
    bootstrap,
    over_seeds,
    randomisation,
    smallest_detectable,
    wilson,
)
from medstudy.show import aggregate
from medstudy.tasks.base import Metric

if TYPE_CHECKING:
    import pandas as pd

#: Draws of a primary outcome's test, in those of the bootstrap: p cannot fall below 2 / draws, and Holm over a
#: study's family needs room below 0.05 / (its size).
_TEST_DRAWS = 5

Metrics = dict[str, dict[str, dict[str, Any]]]


def evaluate(
    predictions: pd.DataFrame,
    task: str,
    labels: Labels,
    positive: str | None,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics and contrasts of one run, in the shape of metrics.json and contrasts.json.

    Args:
        predictions: one row per arm and case (`predictions.predictions_table`).
        labels: allowed answers of each outcome, from the data card; urgency from least to most urgent.
        positive: label whose F1 is reported when there are two.
        seed: of the resampling, not of the run.

    Raises:
        PredictionsError: the table cannot be compared fairly (`validate_predictions`) or scored.
    """
    return pooled({0: predictions}, task, labels, positive, seed, resamples)


def pooled(
    predictions: Mapping[int, pd.DataFrame],
    task: str,
    labels: Labels,
    positive: str | None,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics and contrasts over the seeds of one model and task; keys are the runs' seeds.

    A value is the mean over seeds. The resampling unit is the group (the case, where groups hold one case):
    all its answers, of every seed and arm, are drawn or exchanged together. With several seeds intervals
    and tests speak of other cases and of other trainings (`statistics.over_seeds`); with one seed they take
    the trained models as given.
    """
    answers = Answers.collect(list(predictions.values()))
    metrics: Metrics = {arm: {} for arm in answers.arms}
    contrasts = []
    for metric in task_metrics(task, labels, positive):
        if metric.optional and not all(metric.source in table for table in predictions.values()):
            continue
        measured = _Measured.of(metric, answers, labels)
        estimates = measured.estimates(seed, resamples)
        for arm in answers.arms:
            metrics[arm][metric.name] = measured.entry(arm, estimates[arm])
        for pair in answers.pairs if metric.kind != "share_of_parsed" else ():  # there the arms' cases differ
            if not any(map(measured.masked, pair)):
                contrasts.append(measured.contrast(pair, estimates[pair], seed, resamples))
    order = [f"{a}-{b}" for a, b in CONTRASTS]
    return metrics, sorted(contrasts, key=lambda row: order.index(row["contrast"]))


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

    values = {arm: {name: value_text(cell) for name, cell in cells.items()} for arm, cells in metrics.items()}
    n = {arm: max(cell["n"] for cell in cells.values()) for arm, cells in metrics.items()}
    return _of_enough(pd.DataFrame(values).T.fillna("").assign(n=n), [""])


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
class _Measured:
    """One metric's terms: ``terms[arm][seed]`` by case, ``sums[arm]`` added up (units, seeds, labels, terms)."""

    metric: Metric
    answers: Answers
    terms: dict[str, list[np.ndarray]]
    sums: dict[str, np.ndarray]

    @classmethod
    def of(cls, metric: Metric, answers: Answers, labels: Labels) -> _Measured:
        terms = {arm: [case_sums(metric, by_arm[arm], labels) for by_arm in answers.frames] for arm in answers.arms}
        sums = {}
        for arm, by_seed in terms.items():
            sums[arm] = np.zeros((answers.n_units, len(by_seed), *by_seed[0].shape[1:]))
            for seed, (units, by_case) in enumerate(zip(answers.units, by_seed, strict=True)):
                np.add.at(sums[arm][:, seed], units, by_case)
        return cls(metric, answers, terms, sums)

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Arm -> values (draws, seeds), where units are counted as often as ``weights`` (draws, units) says."""
        if self.metric.kind == "auroc":
            by_case = [weights[:, units] for units in self.answers.units]
            return {
                arm: np.stack([auroc(t, w) for t, w in zip(by_seed, by_case, strict=True)], axis=-1)
                for arm, by_seed in self.terms.items()
            }
        of_arms = np.tensordot(weights, np.stack([*self.sums.values()], axis=1), axes=1)
        return dict(zip(self.sums, value_of(self.metric, np.moveaxis(of_arms, 1, 0)), strict=True))

    def estimates(self, seed: int, resamples: int) -> dict[Any, Estimate]:
        """Every arm's value and every pair's difference, over resampled cases and, if there are several, seeds."""
        seeds, lines = len(self.answers.frames), [*self.answers.arms, *self.answers.pairs]

        def statistic(weights: np.ndarray) -> np.ndarray:
            values = self.values(weights)
            by_seed = np.stack([values[x] if isinstance(x, str) else values[x[0]] - values[x[1]] for x in lines])
            return np.concatenate([by_seed.mean(axis=-1), *np.moveaxis(by_seed, 2, 1)])

        found, draws = bootstrap(statistic, self.answers.n_units, seed, resamples, self.metric.bounded)
        estimates = {}
        for number, line in enumerate(lines):
            start = len(lines) + number * seeds  # after the means of all lines come each line's seeds
            values = np.array([part.value for part in found[start : start + seeds]])
            estimates[line] = over_seeds(values, draws[start : start + seeds]) or found[number]
        return estimates

    def entry(self, arm: str, estimate: Estimate) -> dict[str, Any]:
        """One cell of metrics.json."""
        hits, counted = self.sums[arm].sum(axis=(0, 1))[0, :2]
        whole = self.metric.kind in ("f1", "auroc") or counted
        parsed_only = self.metric.kind == "share_of_parsed"
        n = self.answers.n_cases if whole and not parsed_only else round(counted / len(self.answers.frames))
        limits, note = estimate.interval, estimate.note
        if self.metric.kind in ("share", "share_of_parsed") and self.answers.independent and n:
            limits, note = wilson(hits, n), ""
        if masked := self.masked(arm):
            few = f"fewer than {SMALLEST_COUNT} cases on one side: not shown"
            return {"value": None, "low": _number(masked[0]), "high": _number(masked[1]), "n": n, "note": few}
        low, high = self._within(limits, 0.0)
        return {"value": _number(estimate.value), "low": low, "high": high, "n": n} | ({"note": note} if note else {})

    def masked(self, arm: str) -> Limits | None:
        """What is shown of a share that tells a small count of a private source; the primary outcome always is."""
        if self.answers.shareable or self.metric.primary or not self.metric.kind.startswith("share"):
            return None
        hits, counted = self.sums[arm].sum(axis=(0, 1))[0, :2] / len(self.answers.frames)
        return small_count(hits, counted)

    def contrast(self, pair: Pair, estimate: Estimate, seed: int, resamples: int) -> dict[str, Any]:
        """One row of contrasts.json."""
        values = self.values(np.ones((1, self.answers.n_units)))
        counts = self._discordant(pair) if np.isfinite(estimate.value) else None
        shown = self.answers.shareable or all(n == 0 or n >= SMALLEST_COUNT for n in counts or ())
        test, p = self._test(pair, estimate, counts, seed, resamples)
        low, high = self._within(estimate.interval, -1.0)
        equivalence_low, equivalence_high = self._within(estimate.equivalence, -1.0)
        return {
            "contrast": "-".join(pair),
            "metric": self.metric.name,
            "primary": self.metric.primary,
            "difference": _number(estimate.value),
            "low": low,
            "high": high,
            "p": _number(p),
            "test": test,
            "n": self.answers.n_cases,
            "units": self.answers.n_units,
            "seeds": len(self.answers.frames),
            "by_seed": [_number(d) for d in (values[pair[0]] - values[pair[1]])[0]],
            **({"discordant": sum(counts), "gained": counts[0], "lost": counts[1]} if counts and shown else {}),
            "error": _number(estimate.error),
            "seed_error": _number(estimate.seed_error),
            "equivalence_low": equivalence_low,
            "equivalence_high": equivalence_high,
            "smallest_detectable": _number(smallest_detectable(estimate.error, degrees=estimate.degrees)),
            **({"note": estimate.note} if estimate.note else {}),
        }

    def _test(
        self, pair: Pair, estimate: Estimate, counts: tuple[int, int] | None, seed: int, resamples: int
    ) -> tuple[str, float | None]:
        """Name of the test and its p."""
        if estimate.p is not None:
            return "t over seeds and cases", estimate.p
        if not np.isfinite(estimate.value):
            return "none: an arm has no value", None
        if self.metric.kind == "auroc":
            return "interval only", None
        if counts and self.answers.independent:
            from statsmodels.stats.contingency_tables import mcnemar

            return "exact McNemar", float(mcnemar([[0, counts[0]], [counts[1], 0]], exact=True).pvalue)
        return "approximate randomisation", self._randomised(pair, seed, resamples)

    def _discordant(self, pair: Pair) -> tuple[int, int] | None:
        """Answers that only the first and only the second arm has (right, unparsed, …), over all seeds."""
        if self.metric.kind != "share":
            return None
        first, second = (np.concatenate(self.terms[arm])[:, 0, 0] for arm in pair)
        return int((first > second).sum()), int((first < second).sum())

    def _randomised(self, pair: Pair, seed: int, resamples: int) -> float:
        first, second = (self.sums[arm] for arm in pair)
        totals = first.sum(axis=0), second.sum(axis=0)

        def swapped(draws: np.ndarray) -> np.ndarray:
            moved = np.tensordot(draws, second - first, axes=1)
            return (value_of(self.metric, totals[0] + moved) - value_of(self.metric, totals[1] - moved)).mean(-1)[None]

        draws = resamples * _TEST_DRAWS if self.metric.primary else resamples
        return randomisation(swapped, self.answers.n_units, seed, draws)

    def _within(self, limits: Limits, lowest: float) -> list[float | None]:
        return [_number(np.clip(x, lowest, 1.0) if self.metric.bounded else x) for x in limits]


def _number(x: float | None) -> float | None:
    """Six significant digits, so that tables do not differ in the last bit between machines; None for NaN."""
    return float(f"{x:.6g}") if x is not None and np.isfinite(x) else None
