"""Intervals, tests and power on resampling units (cases or groups of cases), by scipy and statsmodels.

A *statistic* here is a function of weights: it takes an array (draws, units) that says how often each unit
is counted and returns an array (outputs, draws). All outputs share their draws, so differences stay paired.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
Limits = tuple[float, float]

_NONE = (float("nan"), float("nan"))
#: Weights held in memory at once (units x draws).
_BATCH = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, 95 % interval, and 90 % interval for equivalence.

    Attributes:
        note: what was done where the interval could not be computed as usual.
        p: of the test that the value is 0, where the method gives one.
        seed_error: the part of ``error`` that other trainings would bring; None if they were not looked at.
        degrees: of freedom of the t distribution that the intervals come from.
    """

    value: float
    error: float
    interval: Limits
    equivalence: Limits
    note: str = ""
    p: float | None = None
    seed_error: float | None = None
    degrees: float = np.inf


def over_seeds(by_seed: np.ndarray, draws: np.ndarray) -> Estimate | None:
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
    degrees = float((between + shared) ** 2 / (between**2 / (seeds - 1)))
    i95, i90 = (tuple(map(float, t.interval(level, degrees, value, error))) for level in (0.95, 0.90))
    p = float(2 * t.sf(abs(value) / error, degrees))
    return Estimate(value, error, i95, i90, "", p, between**0.5, degrees)


def wilson(successes: float, n: float, alpha: float = 0.05) -> Limits:
    """Wilson's interval of a share (statsmodels)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=alpha, method="wilson")
    return float(low), float(high)


def bootstrap(
    statistic: Statistic, units: int, seed: int = 0, resamples: int = 2000, bounded: bool = True
) -> tuple[list[Estimate], np.ndarray]:
    """BCa intervals of every output of ``statistic`` over resampled units (scipy.stats.bootstrap).

    Where BCa is undefined: the percentile interval, if the resamples vary at all. If they do not (every
    unit alike, e.g. all answers right or two arms identical), value +- Wilson's upper limit of 0 of n,
    so that "no unit differed" never claims more than n units can show; the value alone if not ``bounded``.

    Returns:
        An estimate per output, and the values over the resamples, shape (outputs, draws).
    """
    from scipy import stats

    def by_index(index: np.ndarray, axis: int) -> np.ndarray:
        return statistic(_counts(index.reshape(-1, index.shape[-1]), units)).reshape(-1, *index.shape[:-1])

    values = statistic(np.ones((1, units)))[:, 0]
    if units < 2:
        nothing = [Estimate(float(v), float("nan"), _NONE, _NONE, "one unit: no interval") for v in values]
        return nothing, np.empty((len(values), 0))
    options = {"vectorized": True, "axis": -1, "batch": max(1, _BATCH // units), "rng": np.random.default_rng(seed)}
    data = (np.arange(units),)
    with warnings.catch_warnings():  # undefined BCa is handled below, output by output
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        i95 = stats.bootstrap(data, by_index, n_resamples=resamples, **options)
        again = {"n_resamples": 0, "bootstrap_result": i95, "confidence_level": 0.9}
        i90 = stats.bootstrap(data, by_index, **again, **options)
    draws = i95.bootstrap_distribution
    limits = [np.stack(result.confidence_interval, axis=-1) for result in (i95, i90)]
    return [_estimate(v, d, bca, units, bounded) for v, d, *bca in zip(values, draws, *limits, strict=True)], draws


def _estimate(value: float, draws: np.ndarray, bca: list[np.ndarray], units: int, bounded: bool) -> Estimate:
    value, seen = float(value), draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(seen) < 2:
        return Estimate(value, float("nan"), _NONE, _NONE, "no case is counted: no interval")
    if np.ptp(seen) >= 1e-12:
        note = "" if np.isfinite(bca[0]).all() else "BCa undefined: percentile interval"
        i95, i90 = (_or_percentile(limits, seen, alpha) for limits, alpha in zip(bca, (0.05, 0.10), strict=True))
        return Estimate(value, float(np.std(seen, ddof=1)), i95, i90, note)
    if not bounded:
        return Estimate(value, 0.0, (value, value), (value, value), "all units alike: no spread to estimate")
    i95, i90 = ((value - reach, value + reach) for reach in (wilson(0, units)[1], wilson(0, units, 0.10)[1]))
    return Estimate(value, (i95[1] - i95[0]) / 2 / 1.96, i95, i90, f"all units alike: Wilson limit of 0 of {units}")


def _or_percentile(bca: np.ndarray, draws: np.ndarray, alpha: float) -> Limits:
    low, high = bca if np.isfinite(bca).all() else np.quantile(draws, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


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


def smallest_detectable(error: float, alpha: float = 0.05, power: float = 0.8, degrees: float = np.inf) -> float:
    """The difference found with this power by a two-sided test whose standard error is ``error``.

    (t_{1-alpha/2} + t_power) * error; with infinite degrees of freedom the usual normal formula
    (statsmodels' NormalIndPower for one sample). It shrinks with the root of the number of cases.
    """
    from scipy.stats import t

    return float((t.ppf(1 - alpha / 2, degrees) + t.ppf(power, degrees)) * error)


def _counts(index: np.ndarray, units: int) -> np.ndarray:
    """How often each unit was drawn, shape (draws, units), from drawn indices (draws, drawn)."""
    offset = np.arange(len(index))[:, None] * units
    return np.bincount((index + offset).ravel(), minlength=len(index) * units).reshape(-1, units).astype(float)
