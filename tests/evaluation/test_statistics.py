import numpy as np
import pytest

from medstudy.evaluation.statistics import Estimate, Line, combined, estimates, mean_of, moderated, smallest_detectable


def test_power_equals_statsmodels():
    from statsmodels.stats.power import NormalIndPower

    error = np.sqrt(0.2 / 100)  # 20 % discordant cases, n = 100
    effect = NormalIndPower(ddof=0).solve_power(nobs1=100, alpha=0.05, power=0.8, ratio=0)
    assert smallest_detectable(error) == pytest.approx(effect * np.sqrt(0.2), abs=1e-4)


def line(by_seed, case=0.02, shared=0.5, units=200):
    """A line whose case variance is ``case``² and whose seeds share the part ``shared`` of it."""
    seeds = len(by_seed)
    white = np.linalg.qr(np.random.default_rng(0).normal(size=(units, seeds + 1)))[0].T
    influence = case * (np.sqrt(shared) * white[0] + np.sqrt(1 - shared) * white[1:])
    return Line(np.array(by_seed, float), influence)


def test_one_line_equals_the_published_multi_reader_example():
    """Van Dyke data, 5 readers, two treatments, Cov2 .000344 and Cov3 .000239: R's RJafroc gives SE .02074862."""
    first = np.array([0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066])
    second = np.array([0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169])
    shared = 2 * (0.000344 - 0.000239)
    [got] = estimates([line(first - second, np.sqrt(0.0009), shared / 0.0009, units=100_000)])
    assert got.value == pytest.approx(-0.04380032, abs=1e-7)
    assert got.error == pytest.approx(0.02074862, rel=1e-3)
    assert got.df == pytest.approx(15.25967, rel=2e-2)
    assert got.p == pytest.approx(0.05166569, rel=1e-2)
    assert got.interval() == pytest.approx((-0.0879595, 0.00035885), abs=1e-4)


def test_three_equal_seeds_are_no_certainty():
    rng = np.random.default_rng(2)
    lines = [line([0.005] * 3), *(line(rng.normal(0, 0.025, 3)) for _ in range(11))]
    tied, *others = estimates(lines)
    assert tied.seed > 0.2 * np.mean([other.seed for other in others])
    assert np.ptp(tied.interval()) > 0.06
    # nothing to learn from: what the cases add stays, to all and, in part, to each seed alone
    alone = estimates(lines[:1])[0]
    assert alone.case == pytest.approx(0.5 * 0.02**2 + 2 / 200**2 / 3)
    assert 0.4 < alone.seed / (0.5 * 0.02**2 / 3) < 1


def squeezed(sds, seeds=4, seed=0):
    rng = np.random.default_rng(seed)
    lines = [line(rng.normal(0, sd, seeds)) for sd in sds]
    return np.array([x.seed_variance for x in lines]), *moderated(lines, [""] * len(sds))


def test_moderation_shares_alike_variances_keeps_unlike_ones_and_finds_the_prior():
    raw, alike, df = squeezed([0.025] * 40)
    assert np.ptp(alike) < 0.2 * np.ptp(raw) and df.min() > 10
    raw, unlike, df = squeezed([0.001, 0.3] * 20)
    assert np.corrcoef(np.log(raw), np.log(unlike))[0, 1] > 0.95 and df.max() < 6
    # drawn with 8 prior degrees of freedom around .025²
    sds = 0.025 * np.sqrt(8 / np.random.default_rng(1).chisquare(8, 400))
    _, posterior, df = squeezed(sds, seeds=3, seed=3)
    assert df[0] - 2 == pytest.approx(8, rel=0.5)
    assert np.sqrt(np.median(posterior)) == pytest.approx(0.025, rel=0.15)


def test_variances_are_shared_in_units_of_what_cases_change():
    """Seen in the public study: beside a task whose trainings differ ten times as much, a quiet one was uncertain."""
    rng = np.random.default_rng(4)
    quiet, loud = ([line(rng.normal(0, sd, 3), sd, shared=0.0) for _ in range(5)] for sd in (0.015, 0.15))
    variances, _ = moderated([*quiet, *loud], [""] * 10)
    assert np.sqrt(variances[:5]) == pytest.approx(0.015, rel=0.6) and variances[:5].max() < variances[5:].min() / 10


def test_what_a_training_adds_does_not_fall_with_the_cases_and_one_that_failed_spoils_no_other():
    """Seen once: the variance of 1,000 cases was taken for half of what it is, beside test sets of 50."""
    rng, large, quiet = np.random.default_rng(5), [], []
    for _ in range(40):
        sizes = [50] * 5 + [1000] * 5
        # a case adds .5² to one training alone, the training itself .03²
        lines = [line(rng.normal(0, np.hypot(0.03, 0.5 / n**0.5), 3), 0.5 / n**0.5, 0.0, n) for n in sizes]
        large.append(moderated(lines, [""] * 10)[0][5:])
        alike = [line(rng.normal(0, 0.02, 3), 0.02, 0.0) for _ in range(4)]
        quiet.append(moderated([*alike, line([0.5, -0.4, 0.0], 0.02, 0.0)], [""] * 5)[0][:4])
    assert np.mean(large) == pytest.approx(0.03**2 + 0.5**2 / 1000, rel=0.2)
    assert np.mean(quiet) < 3 * 0.02**2


def test_what_one_seed_or_no_seed_changes():
    assert np.isnan(line([0.1]).seed_variance)
    [one] = estimates([line([0.1])])
    assert (one.seed, one.error) == (0, pytest.approx(np.sqrt(0.02**2 + 2 / 200**2)))
    [base] = estimates([line([0.3, 0.3], shared=1.0)], ["base"])
    assert base.seed == 0 and np.isfinite(base.interval()).all()
    one_unit = Line(np.array([0.1, 0.2]), np.zeros((2, 1)))
    assert np.isnan(estimates([one_unit])[0].interval()).all()


def test_means_of_parts():
    same = [line([0.1, 0.2]), line([0.3, 0.2])]
    assert mean_of(same).by_seed.tolist() == pytest.approx([0.2, 0.2])
    assert mean_of(same).case_variance == pytest.approx(same[0].case_variance)  # the same cases: no gain
    part = Estimate(0.1, seed=0.0004, case=0.0005, seed_df=10, case_df=199, pooled_df=10)
    both = combined([part, part], [0.5, 0.5])
    assert both.value == pytest.approx(0.1) and both.error == pytest.approx(part.error / np.sqrt(2))
    assert both.seed_df == 10  # the variance is known no better than the lines it comes from
    assert combined([part, part], [1, -1]).value == 0
