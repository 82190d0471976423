"""Intervals, tests and power that speak of other test cases and of other trainings.

Seeds are to the cases what readers are in a study of many readers and many cases (Obuchowski and Rockette, Commun
Stat Simul Comput 1995;24:285): squared error = variance between seeds / seeds + covariance that the seeds share
because they answer the same cases. The first is estimated over many lines at once (empirical Bayes, Smyth, Stat Appl
Genet Mol Biol 2004;3:3), so that seeds which happen to agree are no certainty. The second is a jackknife by group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy import optimize, special, stats

Limits = tuple[float, float]

#: A variance between seeds below this share of its family's mean is so low by accident.
_LOWEST = 0.01
#: Prior degrees of freedom of a variance between seeds, before anything is seen.
PRIOR_DF = 8.0
#: A variance below is rounding.
_NONE = 1e-12
#: Degrees of freedom for which it counts that no training varies less than its cases make it.
_ONE_DF = 4.0


@dataclass(frozen=True)
class Line:
    """A value or a difference of two arms, by training (seeds,), on the same test cases.

    ``influence``: what leaving out a unit (case or group) changes, (seeds, units), scaled so that
    ``influence @ influence.T`` is the covariance of the seeds over other test cases.
    """

    by_seed: np.ndarray
    influence: np.ndarray

    @property
    def seed_variance(self) -> float:
        """Between seeds: what other trainings change, and what cases change in each of them alone."""
        return float(np.var(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else float("nan")

    @property
    def case_variance(self) -> float:
        """What other test cases change in all seeds alike.

        Each seed has two units more that differ, one each way (Bonett and Price): arms that agree here may yet differ.
        """
        seeds, units = self.influence.shape
        return float(np.maximum(0.0, self._covariances[1]) + 2 / (seeds * units**2)) if units > 1 else float("nan")

    @property
    def own_variance(self) -> float:
        """What other test cases change in one seed alone; a part of ``seed_variance``."""
        own, shared = self._covariances
        return max(0.0, own - max(0.0, shared))

    @property
    def _covariances(self) -> tuple[float, float]:
        """Over other test cases: the variance of a seed, and the covariance of two."""
        seeds, covariance = len(self.influence), self.influence @ self.influence.T
        own = float(np.trace(covariance)) / max(1, seeds)
        return own, float(covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)) if seeds > 1 else own


def mean_of(lines: Sequence[Line]) -> Line:
    """The mean of lines on the same cases and seeds."""
    return Line(np.mean([x.by_seed for x in lines], axis=0), np.mean([x.influence for x in lines], axis=0))


@dataclass(frozen=True)
class Estimate:
    """A value, the variances that trainings and test cases add to its error, and their degrees of freedom.

    ``pooled_df``: those of the variance between seeds at most, over all lines.
    """

    value: float
    seed: float
    case: float
    seed_df: float
    case_df: float
    pooled_df: float

    @property
    def error(self) -> float:
        return float(np.sqrt(self.seed + self.case))

    @property
    def df(self) -> float:
        """Satterthwaite's."""
        parts = [(self.seed, self.seed_df), (self.case, self.case_df)]
        below = sum(v**2 / df for v, df in parts if v > 0 and df > 0)
        return float((self.seed + self.case) ** 2 / below) if below else np.inf

    def coarse(self) -> Self:
        """With the error rounded up to a hundredth: from an exact one, few differing answers could be counted."""
        hundredths = np.ceil(np.round(100 * self.error, 6))  # one that is round already stays
        return replace(self, case=(hundredths / 100) ** 2 - self.seed)

    def interval(self, level: float = 0.95) -> Limits:
        reach = special.stdtrit(self.df, (1 + level) / 2) * self.error  # infinite degrees of freedom give the normal
        return float(self.value - reach), float(self.value + reach)

    @property
    def p(self) -> float:
        """Two-sided, of the value being 0."""
        return float(2 * special.stdtr(self.df, -abs(self.value) / self.error))


def estimates(lines: Sequence[Line], families: Sequence[str] = ()) -> list[Estimate]:
    """Every line's estimate; variances between seeds are moderated over the lines of a family (default: all)."""
    families = families or [""] * len(lines)
    variances, degrees = moderated(lines, families)
    found = []
    for line, family, variance, df in zip(lines, families, variances, degrees, strict=True):
        seeds, units = line.influence.shape
        pooled = sum(len(x.by_seed) - 1 for x, of in zip(lines, families, strict=True) if of == family)
        seed, df = (float(variance) / seeds, float(df)) if np.isfinite(variance) else (0.0, 0.0)
        value = float(np.mean(line.by_seed))
        case = line.case_variance if np.isfinite(value) else float("nan")
        found.append(Estimate(value, seed, case, df, units - 1, pooled))
    return found


def moderated(lines: Sequence[Line], families: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Variances between seeds, each drawn towards its family's, and their degrees of freedom; NaN and 0 of one seed.

    Tasks differ in how many answers a training changes, and in what one is worth in their metric. So variances are
    shared in units of what other cases change in one seed alone, which is known well. Such a ratio r of d degrees of
    freedom, in a family around r0 with d0 prior ones, becomes (d0 r0 + d r) / (d0 + d), known to d0 + d degrees of
    freedom, and no better than all of its family together. r0 is at least 1, so that a smaller one is drawn there.
    """
    raw = np.array([line.seed_variance for line in lines])
    unit = np.array([line.own_variance for line in lines])
    own = np.array([len(line.by_seed) - 1.0 for line in lines])
    variances, degrees = raw.copy(), np.where(np.isfinite(raw), own, 0.0)
    # what no seed changes, such as the base model, keeps its 0
    known = np.isfinite(raw) & (unit > _NONE)
    where = [np.flatnonzero(known & (np.array(families) == family)) for family in dict.fromkeys(families)]
    learnt = [of for of in where if len(of)]
    prior, centres = _prior([raw[of] / unit[of] for of in learnt], [own[of] for of in learnt])
    for of, centre in zip(learnt, centres, strict=True):
        seen = own[of].sum()
        centre += max(0.0, 1 - centre) * _ONE_DF / (_ONE_DF + seen)
        variances[of] = (prior * centre * unit[of] + own[of] * raw[of]) / (prior + own[of])
        degrees[of] = np.minimum(prior + own[of], seen)
    return variances, degrees


def _prior(variances: Sequence[np.ndarray], degrees: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
    """Prior degrees of freedom of all families, and each one's s0²: s² / s0² has an F distribution.

    The likelihood has a weak prior around `PRIOR_DF`, as a dozen lines alone cannot tell 10 from infinity.
    """
    if not variances:
        return 0.0, np.empty(0)
    means = np.array([max(_LOWEST, np.mean(v)) for v in variances])
    scaled = np.concatenate([np.maximum(v, _LOWEST * m) / m for v, m in zip(variances, means, strict=True)])
    own, family = np.concatenate(degrees), np.repeat(np.arange(len(means)), [len(v) for v in variances])

    def loss(at: np.ndarray) -> float:
        fit = stats.f.logpdf(scaled / np.exp(at[family]), own, np.exp(at[-1])) - at[family]
        return float((at[-1] - np.log(PRIOR_DF)) ** 2 / 2 - fit.sum())

    start = np.append(np.zeros(len(means)), np.log(PRIOR_DF))
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=[(-4, 4)] * len(means) + [(-1, 8)])
    return float(np.exp(found.x[-1])), means * np.exp(found.x[:-1])


def combined(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """A weighted sum of estimates from other cases and other trainings, such as the mean over tasks."""
    w = np.array(weights)
    seed, case = (np.array([getattr(part, name) for part in parts]) * w**2 for name in ("seed", "case"))
    seed_df, case_df = (np.array([getattr(part, name) for part in parts]) for name in ("seed_df", "case_df"))
    known = seed > 0
    below = np.sum(seed[known] ** 2 / seed_df[known])
    df = min(seed.sum() ** 2 / below, parts[0].pooled_df) if below else 0.0
    cases = case.sum() ** 2 / np.sum(case**2 / case_df)
    value = float(w @ [part.value for part in parts])
    return Estimate(value, float(seed.sum()), float(case.sum()), float(df), float(cases), parts[0].pooled_df)


def smallest_detectable(error: float, alpha: float = 0.05, power: float = 0.8, degrees: float = np.inf) -> float:
    """The difference found with this power by a two-sided test: (t_{1-alpha/2} + t_power) * standard ``error``."""
    return float((stats.t.ppf(1 - alpha / 2, degrees) + stats.t.ppf(power, degrees)) * error)
