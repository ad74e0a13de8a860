"""Means over pairs: against a plain implementation of the published formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg
from scipy import stats as scipy_stats

from kdbench.report import stats

CRD = list("aabbbcddeeeff")


def plain(values: np.ndarray, clusters: list[str]) -> tuple[float, float]:
    """Variance and degrees of freedom of the mean, with matrices, as in Pustejovsky and Tipton 2018, section 2."""
    n = len(values)
    design = np.ones((n, 1))
    bread = np.linalg.inv(design.T @ design)
    hat = design @ bread @ design.T
    residuals = values - values.mean()
    meat, loads = np.zeros((1, 1)), []
    for cluster in dict.fromkeys(clusters):
        inside = np.array([one == cluster for one in clusters])
        adjusted = linalg.fractional_matrix_power(np.eye(inside.sum()) - hat[np.ix_(inside, inside)], -0.5)
        score = design[inside].T @ adjusted @ residuals[inside]
        meat += np.outer(score, score)
        loads.append(((np.eye(n) - hat)[:, inside] @ adjusted @ design[inside] @ bread)[:, 0])
    overlaps = np.stack(loads) @ np.stack(loads).T
    return float((bread @ meat @ bread)[0, 0]), float(np.trace(overlaps) ** 2 / np.sum(overlaps**2))


def test_pairs_of_one_teacher_count_together():
    values = np.random.default_rng(0).normal(1, 0.5, 13) + np.repeat([0.5, -0.5, 0.3, 0, -0.2, 0.6], [2, 3, 1, 2, 3, 2])
    found = stats.clustered(values.tolist(), CRD)
    variance, freedom = plain(values, CRD)
    assert found.error == pytest.approx(np.sqrt(variance))
    assert found.freedom == pytest.approx(freedom)
    assert 3 < freedom < 5  # six teachers, of unequal numbers of pairs
    half = scipy_stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (found.estimate.n, found.estimate.mean) == (13, pytest.approx(values.mean()))
    assert (found.estimate.low, found.estimate.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert found.p_value == pytest.approx(2 * scipy_stats.t.sf(values.mean() / np.sqrt(variance), freedom))
    above = scipy_stats.t.cdf((values.mean() - 0.3) / np.sqrt(variance), freedom)
    assert found.probability_above(0.3) == pytest.approx(above)


def test_with_a_teacher_for_each_pair_it_is_students_interval():
    values = [1.0, 2.5, 0.3, 1.7, 2.2, 0.9]
    found = stats.clustered(values, range(6)).estimate
    oracle = scipy_stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    assert stats.clustered(values, range(6)).p_value == pytest.approx(oracle.pvalue)


@pytest.mark.parametrize(
    ("values", "teachers"),
    [([1.0, 2.0, 3.0, 4.0], "abcd"), ([1.0, 2.0, 3.0, 4.0, 5.0], "aaaaa"), ([2.0] * 6, "abcdef"), ([], "")],
)
def test_too_little_for_an_interval(values, teachers):
    found = stats.clustered(values, teachers)
    assert (found.estimate.low, found.p_value, found.probability_above(0.0)) == (None, None, None)
    assert found.estimate.n == len(values)


def test_holms_correction():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]) == []


def test_the_probability_of_improvement_is_over_pairs():
    ours = [np.array([71.0, 73.0]), np.array([60.0]), np.array([])]
    theirs = [np.array([70.0, 72.0]), np.array([60.0]), np.array([50.0])]
    # 71 > 70, 73 > 70, 73 > 72 of four; a tie; no result.
    assert stats.probability_of_improvement(ours, theirs) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert stats.probability_of_improvement([], []) is None


def test_a_profile_gives_each_pair_the_same_weight() -> None:
    values, shares = stats.profile([np.array([1.0, 2.0]), np.array([2.0, -np.inf, 0.0, 2.000001]), np.array([])])
    assert values == pytest.approx([0, 1, 2])
    # At least 0: both runs of the first pair, three of four of the second.
    assert shares == pytest.approx([(1 + 0.75) / 2, (1 + 0.5) / 2, (0.5 + 0.5) / 2])
    assert [len(one) for one in stats.profile([])] == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_a_profile_of_runs_with_equal_weights_is_their_empirical_survival(seed: int) -> None:
    gains = np.random.default_rng(seed).normal(0, 1, (7, 5))
    values, shares = stats.profile(list(gains))
    oracle = 1 - scipy_stats.ecdf(gains.ravel()).cdf.evaluate(values - 1e-3)
    close = np.diff(values, prepend=-9.0) > 2e-3
    assert shares[close] == pytest.approx(oracle[close])
