"""From predictions to metrics.json and contrasts.json, for one run or for the seeds of one model and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medstudy.arms import ARMS, BASELINES, CONTRASTS
from medstudy.evaluation.metrics import Labels, PredictionsError, auroc, case_sums, task_metrics, value_of
from medstudy.evaluation.statistics import (
    Interval,
    OverSeeds,
    Resampled,
    bootstrap,
    exact_mcnemar,
    over_seeds,
    randomisation,
    smallest_detectable,
    wilson,
)
from medstudy.tasks.base import Metric

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("case_id", "group_id", "arm", "output", "status", "answer", "gold")
_TEST_DRAWS = 5
STATUSES = ("parsed", "unparsed", "out_of_range")

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
        predictions: one row per arm and case (see COLUMNS, and ``score_*``).
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
    answers = _Answers.collect(predictions)
    metrics: Metrics = {arm: {} for arm in answers.arms}
    contrasts = []
    for metric in task_metrics(task, labels, positive):
        if metric.optional and not all(metric.source in table for table in predictions.values()):
            continue
        measured = _Measured.of(metric, answers, labels)
        resampled = measured.resample(seed, resamples)
        for arm in answers.arms:
            metrics[arm][metric.name] = measured.entry(arm, resampled[arm])
        if metric.kind != "share_of_parsed":  # its cases differ between arms: nothing to pair
            for pair in answers.pairs:
                contrasts.append(measured.contrast(pair, resampled[pair], seed, resamples))
    order = [f"{a}-{b}" for a, b in CONTRASTS]
    return metrics, sorted(contrasts, key=lambda row: order.index(row["contrast"]))


def contrasts_view(contrasts: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Contrasts as a reader sees them: rounded, and no p of 0."""
    import pandas as pd

    columns = ["contrast", "metric", "difference", "low", "high", "p", "test", "n"]
    table = pd.DataFrame(contrasts)[columns].round(3)
    p = ["" if pd.isna(x) else "< 0.001" if x < 0.001 else f"{x:.3f}" for x in pd.DataFrame(contrasts)["p"]]
    return table.assign(p=p).set_index(columns[:2])


def values_table(metrics: Metrics) -> pd.DataFrame:
    """The values alone: a row an arm or baseline, a column a metric, and the cases."""
    import pandas as pd

    values = {arm: {name: cell["value"] for name, cell in cells.items()} for arm, cells in metrics.items()}
    n = {arm: max(cell["n"] for cell in cells.values()) for arm, cells in metrics.items()}
    return pd.DataFrame(values).T.round(3).assign(n=n)


def validate_predictions(predictions: pd.DataFrame) -> None:
    """Check that every arm answered the same cases once, with the same gold.

    Raises:
        PredictionsError: names the arms and case ids that differ; never shows case text.
    """
    missing = [name for name in COLUMNS if name not in predictions]
    if missing:
        raise PredictionsError(f"predictions lack the column(s) {', '.join(missing)}; they have {list(predictions)}")
    if predictions.empty:
        raise PredictionsError("predictions have no rows; generate the answers of at least one arm")
    for name, allowed in (("arm", (*ARMS, *BASELINES)), ("status", STATUSES)):
        unknown = set(predictions[name]) - set(allowed)
        if unknown:
            raise PredictionsError(f"unknown {name} {sorted(map(str, unknown))}; allowed: {', '.join(allowed)}")
    twice = predictions[predictions.duplicated(["arm", "case_id"])]
    if len(twice):
        raise PredictionsError(
            f"{len(twice)} answers are there twice, e.g. {_example(twice)}; keep one per arm and case"
        )
    _same_cases(predictions)
    _one_gold(predictions)


def _same_cases(predictions: pd.DataFrame) -> None:
    counts = predictions.groupby("case_id")["arm"].nunique()
    lone = predictions[predictions["case_id"].isin(counts.index[counts < predictions["arm"].nunique()])]
    if len(lone):
        raise PredictionsError(
            f"arms answered different cases: {lone['case_id'].nunique()} cases are missing in some arm, "
            f"e.g. {_example(lone)} has no partner; give every arm the same test cases"
        )


def _one_gold(predictions: pd.DataFrame) -> None:
    variants = predictions.groupby("case_id")[["gold", "group_id"]].nunique()
    torn = variants.index[(variants != 1).any(axis=1)]
    if len(torn):
        raise PredictionsError(f"{len(torn)} case ids stand for several golds or groups; case ids must be unique")


def _example(rows: pd.DataFrame) -> str:
    return f"case '{rows['case_id'].iloc[0]}' in arm {rows['arm'].iloc[0]}"


@dataclass(frozen=True)
class _Answers:
    """Answers of all seeds, each arm's rows in one order, and the resampling unit of each row."""

    frames: list[dict[str, pd.DataFrame]]
    units: list[np.ndarray]
    arms: list[str]
    n_units: int
    n_cases: int

    @classmethod
    def collect(cls, predictions: Mapping[int, pd.DataFrame]) -> _Answers:
        import pandas as pd

        for table in predictions.values():
            validate_predictions(table)
        whole = pd.concat([t[["case_id", "group_id", "gold"]] for t in predictions.values()])
        _one_gold(whole)
        present = [frozenset(t["arm"]) for t in predictions.values()]
        if len(set(present)) > 1:
            raise PredictionsError(f"seeds have different arms: {[sorted(p) for p in present]}; run the same arms")
        arms = [arm for arm in (*ARMS, *BASELINES) if arm in present[0]]
        groups = sorted(whole["group_id"].unique())
        tables = [t.sort_values("case_id") for t in predictions.values()]
        frames = [{arm: t[t["arm"] == arm] for arm in arms} for t in tables]
        units = [np.searchsorted(groups, seed_frames[arms[0]]["group_id"]) for seed_frames in frames]
        return cls(frames, units, arms, len(groups), whole["case_id"].nunique())

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [pair for pair in CONTRASTS if set(pair) <= set(self.arms)]

    @property
    def independent(self) -> bool:
        """One answer a unit, so that Wilson and McNemar hold."""
        return len(self.frames) == 1 and self.n_units == self.n_cases


@dataclass(frozen=True)
class _Measured:
    """One metric's per-case terms for every seed and arm, and their sums by unit."""

    metric: Metric
    answers: _Answers
    terms: list[dict[str, np.ndarray]]
    sums: np.ndarray  # units, arms, seeds, labels, terms

    @classmethod
    def of(cls, metric: Metric, answers: _Answers, labels: Labels) -> _Measured:
        terms = [{arm: case_sums(metric, f, labels) for arm, f in frames.items()} for frames in answers.frames]
        shape = (answers.n_units, len(answers.arms), len(terms), *terms[0][answers.arms[0]].shape[1:])
        sums = np.zeros(shape)
        for s, by_arm in enumerate(terms):
            for a, arm in enumerate(answers.arms):
                np.add.at(sums[:, a, s], answers.units[s], by_arm[arm])
        return cls(metric, answers, terms, sums)

    @property
    def units(self) -> int:
        return self.answers.n_units

    def of_arm(self, arm: str) -> np.ndarray:
        return self.sums[:, self.answers.arms.index(arm)]

    def resample(self, seed: int, resamples: int) -> dict[Any, tuple[Resampled, OverSeeds | None]]:
        """Every arm's value and every pair's difference, over resampled cases and over seeds."""
        lines: list[Any] = [*self.answers.arms, *self.answers.pairs]
        results = bootstrap(self._lines, self.units, seed, resamples, self.metric.bounded)
        seeds = len(self.terms)
        by_seed = [results[i : i + seeds] for i in range(len(lines), len(results), seeds)]
        return {
            line: (whole, over_seeds(np.array([r.value for r in parts]), np.stack([r.draws for r in parts])))
            for line, whole, parts in zip(lines, results, by_seed, strict=False)
        }

    def _lines(self, weights: np.ndarray) -> np.ndarray:
        """Weights (draws, units) -> (outputs, draws): arms and pairs over all seeds, then seed by seed."""
        by_arm = dict(zip(self.answers.arms, np.moveaxis(self._by_seed(weights), 1, 0), strict=True))
        lines = np.stack([*by_arm.values(), *(by_arm[a] - by_arm[b] for a, b in self.answers.pairs)])
        return np.concatenate([lines.mean(axis=-1), *np.moveaxis(lines, 2, 1)])

    def _by_seed(self, weights: np.ndarray) -> np.ndarray:
        """Weights (draws, units) -> values (draws, arms, seeds)."""
        if self.metric.kind == "auroc":
            by_case = [weights[:, units] for units in self.answers.units]
            arms = self.answers.arms
            values = [[auroc(self.terms[s][a], w) for s, w in enumerate(by_case)] for a in arms]
            return np.moveaxis(np.array(values), 2, 0)
        totals = weights @ self.sums.reshape(self.units, -1)
        return value_of(self.metric, totals.reshape(len(weights), *self.sums.shape[1:]))

    def entry(self, arm: str, results: tuple[Resampled, OverSeeds | None]) -> dict[str, Any]:
        """One cell of metrics.json."""
        result, retrained = results
        hits, counted = self.of_arm(arm).sum(axis=(0, 2))[0, :2]
        parsed_only = self.metric.kind == "share_of_parsed"
        n = round(counted / len(self.terms)) if parsed_only else self.answers.n_cases
        interval = (retrained or result).interval
        if self.metric.kind in ("share", "share_of_parsed") and self.answers.independent and n:
            interval = wilson(hits, n)
        return {
            "value": _number(result.value),
            **_limits(interval, self._range(0.0)),
            "n": n,
            **_note(interval),
        }

    def contrast(
        self, pair: tuple[str, str], results: tuple[Resampled, OverSeeds | None], seed: int, resamples: int
    ) -> dict[str, Any]:
        """One row of contrasts.json."""
        counts = self._discordant(pair)
        result, retrained = results
        best, degrees = retrained or result, retrained.degrees if retrained else np.inf
        if retrained:
            test, p = "t over seeds and cases", retrained.p
        elif self.metric.kind == "auroc":
            test, p = "interval only", np.nan
        elif counts and self.answers.independent:
            test, p = "exact McNemar", exact_mcnemar(*counts)
        else:
            test, p = "approximate randomisation", self._randomised(pair, seed, resamples)
        arms = [self.answers.arms.index(arm) for arm in pair]
        by_seed = self._by_seed(np.ones((1, self.units)))[0][arms]
        within = self._range(-1.0)
        return {
            "contrast": "-".join(pair),
            "metric": self.metric.name,
            "primary": self.metric.primary,
            "difference": _number(result.value),
            **_limits(best.interval, within),
            "p": _number(p),
            "test": test,
            "n": self.answers.n_cases,
            "units": self.units,
            "seeds": len(self.terms),
            "by_seed": [_number(d) for d in by_seed[0] - by_seed[1]],
            **({"discordant": sum(counts), "gained": counts[0], "lost": counts[1]} if counts else {}),
            "error": _number(best.error),
            "seed_error": _number(retrained.seed_error) if retrained else None,
            "equivalence_low": _limits(best.equivalence, within)["low"],
            "equivalence_high": _limits(best.equivalence, within)["high"],
            "smallest_detectable": _number(smallest_detectable(best.error, degrees=degrees)),
            **_note(best.interval),
        }

    def _discordant(self, pair: tuple[str, str]) -> tuple[int, int] | None:
        """Answers that only the first and only the second arm has (right, unparsed, …), over all seeds."""
        if self.metric.kind != "share":
            return None
        difference = np.concatenate([by_arm[pair[0]] - by_arm[pair[1]] for by_arm in self.terms])[:, 0, 0]
        return int((difference > 0).sum()), int((difference < 0).sum())

    def _randomised(self, pair: tuple[str, str], seed: int, resamples: int) -> float:
        first, second = self.of_arm(pair[0]), self.of_arm(pair[1])
        exchange = (second - first).reshape(self.units, -1)
        totals = first.sum(axis=0), second.sum(axis=0)

        def swapped(draws: np.ndarray) -> np.ndarray:
            moved = (draws @ exchange).reshape(len(draws), *totals[0].shape)
            return (value_of(self.metric, totals[0] + moved) - value_of(self.metric, totals[1] - moved)).mean(-1)[None]

        # p cannot fall below 2 / draws; Holm over a study's family needs room below 0.05 / (its size)
        draws = resamples * _TEST_DRAWS if self.metric.primary else resamples
        return randomisation(swapped, self.units, seed, draws)

    def _range(self, lowest: float) -> tuple[float, float]:
        return (lowest, 1.0) if self.metric.bounded else (-np.inf, np.inf)


def _limits(interval: Interval, within: tuple[float, float]) -> dict[str, float | None]:
    return {name: _number(np.clip(getattr(interval, name), *within)) for name in ("low", "high")}


def _note(interval: Interval) -> dict[str, str]:
    return {"note": interval.note} if interval.note else {}


def _number(x: float) -> float | None:
    """Six significant digits, so that tables do not differ in the last bit between machines; None for NaN."""
    return float(f"{x:.6g}") if np.isfinite(x) else None
