import numpy as np
import pytest
from scipy import stats

from medstudy.evaluation.statistics import (
    bootstrap,
    over_seeds,
    randomisation,
    smallest_detectable,
    wilson,
)


def mean_of(values):
    values = np.asarray(values, float)
    return lambda weights: (weights @ values / weights.sum(axis=1))[None]


def mcnemar(gained, lost):
    """Exact McNemar, by the binomial of the discordant cases."""
    return stats.binomtest(gained, gained + lost).pvalue


def swap_mean(difference):
    difference = np.asarray(difference, float)
    return lambda draws: ((1 - 2 * draws) @ difference / len(difference))[None]


# Newcombe, Stat Med 1998;17:857, table I, method 3 (score, no continuity correction)
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombes_table(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_bca_equals_scipy_on_the_values_themselves():
    values = np.random.default_rng(1).exponential(size=60)
    [ours], draws = bootstrap(mean_of(values), 60, seed=3, resamples=999)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=999, rng=np.random.default_rng(3))
    assert draws.shape == (1, 999)
    assert ours.interval == pytest.approx(theirs.confidence_interval)
    assert ours.error == pytest.approx(theirs.standard_error)
    assert ours.interval[0] < ours.equivalence[0] < ours.equivalence[1] < ours.interval[1]


def test_units_that_are_all_alike_get_wilsons_limit_and_a_note():
    [result], _ = bootstrap(mean_of(np.ones(50)), 50)
    assert result.interval[0] == pytest.approx(wilson(50, 50)[0])
    assert "all units alike" in result.note
    assert result.error > 0
    assert bootstrap(mean_of(np.full(50, 7.0)), 50, bounded=False)[0][0].interval == (7, 7)


def test_undefined_outputs_and_single_units_have_no_interval():
    [undefined], _ = bootstrap(lambda weights: np.full((1, len(weights)), np.nan), 10)
    assert np.isnan(undefined.interval).all()
    assert np.isnan(bootstrap(mean_of([1.0]), 1)[0][0].interval).all()


def test_randomisation_is_exact_for_few_units():
    assert randomisation(swap_mean([1, 1, 1, 1, 1]), 5) == pytest.approx(2 / 2**5)
    assert randomisation(swap_mean([0.0] * 30), 30) == 1


def test_randomisation_agrees_with_mcnemar_on_shares():
    difference = [1] * 18 + [-1] * 6 + [0] * 76
    assert randomisation(swap_mean(difference), 100, resamples=20_000) == pytest.approx(mcnemar(18, 6), abs=0.006)


def test_power_equals_statsmodels():
    from statsmodels.stats.power import NormalIndPower

    error = np.sqrt(0.2 / 100)  # 20 % discordant cases, n = 100
    effect = NormalIndPower(ddof=0).solve_power(nobs1=100, alpha=0.05, power=0.8, ratio=0)
    assert smallest_detectable(error) == pytest.approx(effect * np.sqrt(0.2), abs=1e-4)
    assert smallest_detectable(error) == pytest.approx(0.125, abs=0.0005)


def test_intervals_cover_and_tests_keep_their_level():
    rng = np.random.default_rng(8)
    covered, rejected, runs = 0, 0, 300
    for run in range(runs):
        difference = rng.choice([-1, 0, 1], 100, p=[0.1, 0.75, 0.15])
        low, high = bootstrap(mean_of(difference), 100, seed=run, resamples=500)[0][0].interval
        covered += low <= 0.05 <= high
        null = rng.choice([-1, 0, 1], 100, p=[0.1, 0.8, 0.1])
        rejected += mcnemar(int((null > 0).sum()), int((null < 0).sum())) < 0.05
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
    assert got.interval == pytest.approx((-0.0879595, 0.00035885), abs=1e-4)


def test_over_seeds_has_nothing_to_say_of_one_seed_or_of_seeds_that_agree():
    assert over_seeds(np.array([0.1]), np.ones((1, 50))) is None
    assert over_seeds(np.array([0.1, 0.1]), np.random.default_rng(0).normal(size=(2, 50))) is None
