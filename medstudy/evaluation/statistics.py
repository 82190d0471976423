"""Intervals, tests and power on resampling units (cases or groups of cases), by scipy and statsmodels.

A *statistic* here is a function of weights: it takes an array (draws, units) that says how often each unit
is counted and returns an array (outputs, draws). All outputs share their draws, so differences stay paired.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]

#: Weights held in memory at once (units x draws).
_BATCH = 2_000_000


@dataclass(frozen=True)
class Interval:
    """Limits of an interval; ``note`` says what was done where BCa could not be computed."""

    low: float
    high: float
    note: str = ""


@dataclass(frozen=True)
class Resampled:
    """What a bootstrap gives for one output: standard error, 95 % interval, and 90 % for equivalence.

    ``draws`` are its values over the resamples, shared by all outputs of one call.
    """

    value: float
    error: float
    interval: Interval
    equivalence: Interval
    draws: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class OverSeeds:
    """Mean over trained models and its uncertainty from two sources: other trainings and other cases.

    ``seed_error`` and ``case_error`` are the two parts of ``error`` (their squares add up).
    """

    value: float
    error: float
    seed_error: float
    case_error: float
    degrees: float
    p: float
    interval: Interval
    equivalence: Interval


def over_seeds(by_seed: np.ndarray, draws: np.ndarray) -> OverSeeds | None:
    """t interval and test that speak of other cases *and* of other trainings with the same settings.

    Seeds are to the cases what readers are in a study of many readers and many cases: the method of
    Obuchowski and Rockette (Commun Stat Simul Comput 1995;24:285) with the degrees of freedom of Hillis
    (Stat Med 2007;26:596). Squared error = variance between seeds / seeds + covariance that the seeds share
    because they answer the same cases.

    Args:
        by_seed: value (or difference of two arms) of every seed, shape (seeds,).
        draws: the same over resampled cases, shape (seeds, draws).

    Returns:
        None where there is nothing to estimate: fewer than two seeds, or seeds that do not differ.
    """
    from scipy.stats import t

    seeds = len(by_seed)
    if seeds < 2 or draws.size == 0 or not np.isfinite(by_seed).all() or np.ptp(by_seed) < 1e-12:
        return None
    between = float(np.var(by_seed, ddof=1)) / seeds
    covariance = np.cov(draws[:, np.isfinite(draws).all(axis=0)])
    shared = max(0.0, float(covariance[~np.eye(seeds, dtype=bool)].mean()))
    value, error = float(by_seed.mean()), float(np.sqrt(between + shared))
    degrees = (between + shared) ** 2 / (between**2 / (seeds - 1))
    limits = [Interval(*map(float, t.interval(level, degrees, value, error))) for level in (0.95, 0.90)]
    p = float(2 * t.sf(abs(value) / error, degrees))
    return OverSeeds(value, error, between**0.5, shared**0.5, float(degrees), p, *limits)


def wilson(successes: float, n: float, alpha: float = 0.05) -> Interval:
    """Wilson's interval of a share (statsmodels)."""
    from statsmodels.stats.proportion import proportion_confint

    return Interval(*(float(x) for x in proportion_confint(successes, n, alpha=alpha, method="wilson")))


def bootstrap(
    statistic: Statistic, units: int, seed: int = 0, resamples: int = 2000, bounded: bool = True
) -> list[Resampled]:
    """BCa intervals of every output of ``statistic`` over resampled units (scipy.stats.bootstrap).

    Where BCa is undefined: the percentile interval, if the resamples vary at all. If they do not (every
    unit alike, e.g. all answers right or two arms identical), value +- Wilson's upper limit of 0 of n,
    so that "no unit differed" never claims more than n units can show; the value alone if not ``bounded``.
    """
    from scipy import stats

    def by_index(index: np.ndarray, axis: int) -> np.ndarray:
        return statistic(_counts(index.reshape(-1, index.shape[-1]), units)).reshape(-1, *index.shape[:-1])

    value = statistic(np.ones((1, units)))[:, 0]
    if units < 2:
        nothing = Interval(float("nan"), float("nan"), "one unit: no interval")
        return [Resampled(float(v), float("nan"), nothing, nothing, np.empty(0)) for v in value]
    options = {
        "vectorized": True,
        "axis": -1,
        "batch": max(1, _BATCH // units),
        "rng": np.random.default_rng(seed),
    }
    with warnings.catch_warnings():  # undefined BCa is handled below, output by output
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        first = stats.bootstrap((np.arange(units),), by_index, n_resamples=resamples, **options)
        second = stats.bootstrap(
            (np.arange(units),),
            by_index,
            n_resamples=0,
            bootstrap_result=first,
            confidence_level=0.9,
            **options,
        )
    results = zip(value, first.bootstrap_distribution, _limits(first), _limits(second), strict=True)
    return [_resampled(v, draws, i95, i90, units, bounded) for v, draws, i95, i90 in results]


def randomisation(swapped: Statistic, units: int, seed: int = 0, resamples: int = 2000) -> float:
    """Two-sided p of approximate randomisation: two arms change places within units (scipy permutation_test).

    ``swapped`` takes (draws, units) of 0 and 1, where 1 exchanges that unit's arms, and returns (1, draws)
    differences. Exact where all exchanges are fewer than ``resamples``.
    """
    from scipy.stats import permutation_test

    if units < 2:
        return 1.0

    def by_index(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        draws = (first >= units).reshape(-1, units).astype(float)
        return swapped(draws)[0].reshape(first.shape[:-1])

    result = permutation_test(
        (np.arange(units), np.arange(units) + units),
        by_index,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH // units),
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def exact_mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p from the discordant cases, those that only one arm has (statsmodels)."""
    from statsmodels.stats.contingency_tables import mcnemar

    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm-adjusted p-values of one family (statsmodels)."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1] if len(p_values) else np.array([])


def smallest_detectable(error: float, alpha: float = 0.05, power: float = 0.8, degrees: float = np.inf) -> float:
    """The difference found with this power by a two-sided test whose standard error is ``error``.

    (t_{1-alpha/2} + t_power) * error; with infinite degrees of freedom the usual normal formula
    (statsmodels' NormalIndPower for one sample). It shrinks with the root of the number of cases.
    """
    from scipy.stats import t

    return float((t.ppf(1 - alpha / 2, degrees) + t.ppf(power, degrees)) * error)


def cases_needed(n: int, error: float, difference: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """How many cases in all would show ``difference``, given the standard error seen with ``n``."""
    return int(np.ceil(n * (smallest_detectable(error, alpha, power) / abs(difference)) ** 2))


def _counts(index: np.ndarray, units: int) -> np.ndarray:
    """How often each unit was drawn, shape (draws, units), from drawn indices (draws, drawn)."""
    offset = np.arange(len(index))[:, None] * units
    return np.bincount((index + offset).ravel(), minlength=len(index) * units).reshape(-1, units).astype(float)


def _limits(result: Any) -> np.ndarray:
    """Interval limits of a scipy BootstrapResult, shape (outputs, 2)."""
    return np.stack(result.confidence_interval, axis=-1)


def _resampled(
    value: float, draws: np.ndarray, i95: np.ndarray, i90: np.ndarray, units: int, bounded: bool
) -> Resampled:
    seen = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(seen) < 2:
        nothing = Interval(float("nan"), float("nan"), "no case is counted: no interval")
        return Resampled(float(value), float("nan"), nothing, nothing, draws)
    if np.ptp(seen) < 1e-12:
        return _without_spread(float(value), units, bounded, draws)
    intervals = (_or_percentile(limits, seen, alpha) for limits, alpha in ((i95, 0.05), (i90, 0.10)))
    return Resampled(float(value), float(np.std(seen, ddof=1)), *intervals, draws)


def _or_percentile(bca: np.ndarray, draws: np.ndarray, alpha: float) -> Interval:
    if np.isfinite(bca).all():
        return Interval(float(bca[0]), float(bca[1]))
    low, high = np.quantile(draws, [alpha / 2, 1 - alpha / 2])
    return Interval(float(low), float(high), "BCa undefined: percentile interval")


def _without_spread(value: float, units: int, bounded: bool, draws: np.ndarray) -> Resampled:
    if not bounded:
        same = Interval(value, value, "all units alike: no spread to estimate")
        return Resampled(value, 0.0, same, same, draws)
    note = f"all units alike: Wilson limit of 0 of {units}"
    i95, i90 = (
        Interval(value - reach, value + reach, note) for reach in (wilson(0, units).high, wilson(0, units, 0.10).high)
    )
    return Resampled(value, (i95.high - i95.low) / 2 / 1.96, i95, i90, draws)
