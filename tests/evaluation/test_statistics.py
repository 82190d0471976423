import numpy as np
import pytest
from scipy import stats

from medstudy.evaluation.statistics import (
    bootstrap,
    cases_needed,
    exact_mcnemar,
    holm,
    over_seeds,
    randomisation,
    smallest_detectable,
    wilson,
)


def mean_of(values):
    values = np.asarray(values, float)
    return lambda weights: (weights @ values / weights.sum(axis=1))[None]


def swap_mean(difference):
    difference = np.asarray(difference, float)
    return lambda draws: ((1 - 2 * draws) @ difference / len(difference))[None]


# Newcombe, Stat Med 1998;17:857, table I, method 3 (score, no continuity correction)
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombes_table(successes, n, low, high):
    interval = wilson(successes, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_mcnemar_by_hand_and_by_the_binomial():
    assert exact_mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    # approval ratings, 1600 adults asked twice (Agresti 1990; the example of R's mcnemar.test): 86 and 150
    assert exact_mcnemar(86, 150) == pytest.approx(stats.binomtest(86, 236).pvalue)
    assert exact_mcnemar(0, 0) == 1


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1, made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert len(holm([])) == 0


def test_bca_equals_scipy_on_the_values_themselves():
    values = np.random.default_rng(1).exponential(size=60)
    ours = bootstrap(mean_of(values), 60, seed=3, resamples=999)[0]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=999, rng=np.random.default_rng(3))
    assert (ours.interval.low, ours.interval.high) == pytest.approx(theirs.confidence_interval)
    assert ours.error == pytest.approx(theirs.standard_error)
    assert ours.interval.low < ours.equivalence.low < ours.equivalence.high < ours.interval.high


def test_units_that_are_all_alike_get_wilsons_limit_and_a_note():
    result = bootstrap(mean_of(np.ones(50)), 50)[0]
    assert result.interval.low == pytest.approx(wilson(50, 50).low)
    assert "all units alike" in result.interval.note
    assert result.error > 0
    assert bootstrap(mean_of(np.full(50, 7.0)), 50, bounded=False)[0].interval.high == 7


def test_undefined_outputs_and_single_units_have_no_interval():
    undefined = bootstrap(lambda weights: np.full((1, len(weights)), np.nan), 10)[0]
    assert np.isnan(undefined.interval.low)
    assert np.isnan(bootstrap(mean_of([1.0]), 1)[0].interval.low)


def test_randomisation_is_exact_for_few_units():
    assert randomisation(swap_mean([1, 1, 1, 1, 1]), 5) == pytest.approx(2 / 2**5)
    assert randomisation(swap_mean([0.0] * 30), 30) == 1


def test_randomisation_agrees_with_mcnemar_on_shares():
    difference = [1] * 18 + [-1] * 6 + [0] * 76
    assert randomisation(swap_mean(difference), 100, resamples=20_000) == pytest.approx(exact_mcnemar(18, 6), abs=0.006)


def test_power_equals_statsmodels():
    from statsmodels.stats.power import NormalIndPower

    error = np.sqrt(0.2 / 100)  # 20 % discordant cases, n = 100
    effect = NormalIndPower(ddof=0).solve_power(nobs1=100, alpha=0.05, power=0.8, ratio=0)
    assert smallest_detectable(error) == pytest.approx(effect * np.sqrt(0.2), abs=1e-4)
    assert smallest_detectable(error) == pytest.approx(0.125, abs=0.0005)
    assert cases_needed(100, error, 0.125) == pytest.approx(100, abs=1)
    assert cases_needed(100, error, 0.0625) == pytest.approx(400, abs=4)


def test_intervals_cover_and_tests_keep_their_level():
    rng = np.random.default_rng(8)
    covered, rejected, runs = 0, 0, 300
    for run in range(runs):
        difference = rng.choice([-1, 0, 1], 100, p=[0.1, 0.75, 0.15])
        interval = bootstrap(mean_of(difference), 100, seed=run, resamples=500)[0].interval
        covered += interval.low <= 0.05 <= interval.high
        null = rng.choice([-1, 0, 1], 100, p=[0.1, 0.8, 0.1])
        rejected += exact_mcnemar(int((null > 0).sum()), int((null < 0).sum())) < 0.05
    assert 0.91 <= covered / runs <= 0.98
    assert rejected / runs <= 0.06


def draws_with(variance, covariance, seeds):
    """Draws whose sample covariance is exactly this."""
    wanted = np.full((seeds, seeds), covariance) + np.eye(seeds) * (variance - covariance)
    white = np.random.default_rng(1).normal(size=(seeds, 1000))
    white = np.linalg.solve(np.linalg.cholesky(np.cov(white)), white - white.mean(axis=1, keepdims=True))
    return np.linalg.cholesky(wanted) @ white


def test_over_seeds_equals_the_published_multi_reader_example():
    # Van Dyke data, 5 readers, ROC area of two treatments, Cov2 .000344 and Cov3 .000239; R package RJafroc
    # gives SE 0.02074862, df 15.25967, p 0.05166569 and the interval (-0.08795950, 0.00035885)
    first = np.array([0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066])
    second = np.array([0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169])
    got = over_seeds(first - second, draws_with(0.0009, 2 * (0.000344 - 0.000239), 5))
    assert got.value == pytest.approx(-0.04380032, abs=1e-7)
    assert got.error == pytest.approx(0.02074862, rel=1e-3)
    assert got.degrees == pytest.approx(15.25967, rel=1e-2)
    assert got.p == pytest.approx(0.05166569, rel=1e-2)
    assert (got.interval.low, got.interval.high) == pytest.approx((-0.0879595, 0.00035885), abs=1e-4)


def test_over_seeds_has_nothing_to_say_of_one_seed_or_of_seeds_that_agree():
    assert over_seeds(np.array([0.1]), np.ones((1, 50))) is None
    assert over_seeds(np.array([0.1, 0.1]), np.random.default_rng(0).normal(size=(2, 50))) is None
