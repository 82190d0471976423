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

#: A ratio below this share of its family's median is so low by accident.
_LOWEST = 0.01
#: Prior degrees of freedom of a variance between seeds, before anything is seen.
PRIOR_DF = 8.0
#: A variance below is rounding.
_NONE = 1e-12
#: Degrees of freedom for which it counts that no training varies less than its cases make it.
_LEAST_DF = 4.0


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


def estimates(lines: Sequence[Line], families: Sequence[str] = (), hidden: Sequence[bool] = ()) -> list[Estimate]:
    """Every line's estimate; variances between seeds are moderated over the lines of a family (default: all).

    ``hidden``: lines whose answers may not be counted. They neither give to the others nor take from them, and their
    variance between seeds is that of their own values.
    """
    families = families or [""] * len(lines)
    variances, degrees = moderated(lines, families, hidden)
    found = []
    for line, family, variance, df in zip(lines, families, variances, degrees, strict=True):
        seeds, units = line.influence.shape
        vary = (of for of, one, v in zip(lines, families, variances, strict=True) if one == family and v > 0)
        pooled = sum(len(of.by_seed) - 1 for of in vary)
        seed, df = (float(variance) / seeds, float(df)) if np.isfinite(variance) else (0.0, 0.0)
        value = float(np.mean(line.by_seed))
        case = line.case_variance if np.isfinite(value) else float("nan")
        found.append(Estimate(value, seed, case, df, units - 1, pooled))
    return found


def moderated(
    lines: Sequence[Line], families: Sequence[str], hidden: Sequence[bool] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Variances between seeds, each drawn towards its family's, and their degrees of freedom; NaN and 0 of one seed.

    Tasks differ in how many answers a training changes, and in what one is worth in their metric; and what cases add to
    one seed falls with their number, what its training adds does not. So a line of n cases whose own variance is v is
    expected to vary by v (1 + m n), with one m for its family. A ratio r to that, of d degrees of freedom, in a family
    around r0 with d0 prior ones becomes (d0 r0 + d r) / (d0 + d), known to d0 + d degrees of freedom, and no better
    than all of its family together. No training varies by less than v: what is expected below is drawn there.
    Lines that are ``hidden``, or that no seed changes, stay as they are.
    """
    raw = np.array([line.seed_variance for line in lines])
    least = np.array([line.own_variance for line in lines])
    own = np.array([len(line.by_seed) - 1.0 for line in lines])
    n = np.array([line.influence.shape[1] for line in lines])
    variances, degrees = raw.copy(), np.where(np.isfinite(raw), own, 0.0)
    fit = np.isfinite(raw) & (least > _NONE) & ~np.array(hidden or [False] * len(lines), dtype=bool)
    where = [np.flatnonzero(fit & (np.array(families) == family)) for family in dict.fromkeys(families)]
    learnt = [of for of in where if len(of)]
    expected = least.copy()
    for of in learnt:
        # by the median, so that one training which failed does not make all others uncertain
        more = (raw[of] / least[of] * own[of] / stats.chi2.median(own[of]) - 1) / n[of]
        expected[of] *= 1 + max(0.0, float(np.median(more))) * n[of]
    prior, centres = _prior([raw[of] / expected[of] for of in learnt], [own[of] for of in learnt])
    for of, centre in zip(learnt, centres, strict=True):
        seen, around = own[of].sum(), centre * expected[of]
        around += np.maximum(0.0, least[of] - around) * _LEAST_DF / (_LEAST_DF + seen)
        variances[of] = (prior * around + own[of] * raw[of]) / (prior + own[of])
        degrees[of] = np.minimum(prior + own[of], seen)
    return variances, degrees


def _prior(ratios: Sequence[np.ndarray], degrees: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
    """Prior degrees of freedom of all families, and each one's r0: r / r0 has an F distribution.

    The likelihood has a weak prior around `PRIOR_DF`, as a dozen lines alone cannot tell 10 from infinity.
    """
    if not ratios:
        return 0.0, np.empty(0)
    middles = np.array([max(_LOWEST, np.median(of)) for of in ratios])
    scaled = np.concatenate([np.maximum(of, _LOWEST * m) / m for of, m in zip(ratios, middles, strict=True)])
    own, family = np.concatenate(degrees), np.repeat(np.arange(len(middles)), [len(of) for of in ratios])

    def loss(at: np.ndarray) -> float:
        fit = stats.f.logpdf(scaled / np.exp(at[family]), own, np.exp(at[-1])) - at[family]
        return float((at[-1] - np.log(PRIOR_DF)) ** 2 / 2 - fit.sum())

    start = np.append(np.zeros(len(middles)), np.log(PRIOR_DF))
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=[(-4, 4)] * len(middles) + [(-1, 8)])
    return float(np.exp(found.x[-1])), middles * np.exp(found.x[:-1])


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
