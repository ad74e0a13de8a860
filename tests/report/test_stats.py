from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench.report import stats
from kdbench.report.stats import DIVERGED, Estimate


def test_an_estimate_agrees_with_scipy() -> None:
    values = [70.1, 71.4, 69.8, 72.0, 70.9]
    found = stats.estimate(values)
    interval = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.n == 5
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(scipy_stats.tstd(values))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.half_width == pytest.approx((interval.high - interval.low) / 2)


def test_one_value_has_no_spread_and_no_interval() -> None:
    assert stats.estimate([70.0]) == Estimate(1, 70.0)
    assert stats.estimate([]) == Estimate(0)
    assert stats.estimate([70.0]).resolved is None
    assert stats.estimate([70.0]).half_width is None


@pytest.mark.parametrize(
    ("differences", "resolved"), [([1.0, 1.1, 0.9], True), ([-1.0, 1.0, 0.1], False), ([-1.0, -1.1, -0.9], True)]
)
def test_a_difference_is_resolved_where_its_interval_excludes_zero(differences: list[float], resolved: bool) -> None:
    assert stats.estimate(differences).resolved is resolved


def test_ranks_share_ties_and_put_diverged_last() -> None:
    found = stats.ranks(np.array([71.0, 73.0, DIVERGED, 71.0, DIVERGED]))
    assert found.tolist() == [2.5, 1.0, 4.5, 2.5, 4.5]
    # Equal, but for the order in which the seeds were summed.
    means = [sum([0.1, 0.2, 0.3]) / 3, sum([0.3, 0.2, 0.1]) / 3]
    assert means[0] != means[1]
    assert stats.ranks(np.array([*means, 0.198])).tolist() == [1.5, 1.5, 3.0]


def test_a_complete_block_leaves_out_pairs_that_most_lack_and_methods_that_lack_any() -> None:
    present = np.ones((4, 3), dtype=bool)
    present[3, :2] = False  # a method that reads one pair only
    present[1:, 2] = False  # a pair that has just begun
    present[3, 2] = True
    assert stats.complete_block(present) == ([0, 1, 2], [0, 1])
    assert stats.complete_block(np.ones((2, 2), dtype=bool)) == ([0, 1], [0, 1])
    assert stats.complete_block(np.zeros((2, 2), dtype=bool)) == ([], [])
    # A method that lacks one pair of many goes, not the pair.
    gap = np.ones((3, 6), dtype=bool)
    gap[1, 4] = False
    assert stats.complete_block(gap) == ([0, 2], [0, 1, 2, 3, 4, 5])
    assert stats.complete_block(np.array([[False], [True], [False]])) == ([1], [0])
    # Two methods of six are done, on both pairs: those that have not begun cost no pair.
    begun = np.zeros((6, 2), dtype=bool)
    begun[:2] = True
    assert stats.complete_block(begun) == ([0, 1], [0, 1])


def test_values_that_do_not_vary_give_no_interval() -> None:
    # One image of 500 in three seeds, whatever the order of the additions.
    found = stats.estimate([-0.2, 97.8 - 98.0, 97.6 - 97.8])
    assert (found.n, found.mean) == (3, pytest.approx(-0.2))
    assert (found.low, found.high, found.resolved) == (None, None, None)


def test_an_interval_does_not_leave_the_possible_values() -> None:
    found = stats.bounded(stats.estimate([98.0, 99.5, 100.0]), 0, 100)
    assert (found.high, found.mean) == (100, pytest.approx(99.1666667))
    assert found.low == pytest.approx(99.1666667 - 4.3026527 * np.std([98.0, 99.5, 100.0], ddof=1) / math.sqrt(3))


def test_mean_ranks_have_the_intervals_of_means_over_teachers() -> None:
    scores = np.array([[70.0, 72.0], [60.0, 59.0], [50.0, 55.0], [40.0, 41.0], [30.0, 31.0], [70.0, DIVERGED]])
    first, second = stats.mean_ranks(scores, list("abcdef"))
    oracle = scipy_stats.ttest_1samp([2, 1, 2, 2, 2, 1], 0).confidence_interval(0.95)
    assert first.mean == pytest.approx(10 / 6)
    assert (first.low, first.high) == pytest.approx((oracle.low, 2.0))
    assert second.mean == pytest.approx(8 / 6)
    assert (second.low, second.high) == pytest.approx((1.0, 3 - oracle.low))
    for few in (stats.mean_ranks(scores[:4], list("abcd")), stats.mean_ranks(scores, list("abcdef"), intervals=False)):
        assert all(rank.low is None and rank.high is None for rank in few)


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (5, 2.728), (7, 2.949), (10, 3.164)])
def test_the_critical_difference_uses_the_published_quantiles(methods: int, q: float) -> None:
    # Demšar 2006, table 5(a), at 0.05.
    assert stats.critical_difference(methods, 30) == pytest.approx(
        q * math.sqrt(methods * (methods + 1) / (6 * 30)), abs=1e-3
    )


def test_comparison_over_pairs_agrees_with_friedmans_formula() -> None:
    scores = np.array(
        [[70, 71, 73, 72], [60, 62, 64, 63], [80, 79, 83, 82], [65, 66, 68, 67], [50, 51, 52, 53], [40, 42, 41, 43]],
        dtype=np.float64,
    )
    found = stats.compare_over_pairs(scores)
    assert found is not None
    pairs, methods = scores.shape
    sums = np.array([[1 + sum(other > score for other in row) for score in row] for row in scores]).sum(axis=0)
    statistic = 12 / (pairs * methods * (methods + 1)) * float((sums**2).sum()) - 3 * pairs * (methods + 1)
    assert (found.pairs, found.methods) == (6, 4)
    assert found.statistic == pytest.approx(statistic)
    assert found.p_value == pytest.approx(scipy_stats.chi2.sf(statistic, methods - 1))


def test_comparison_over_pairs_keeps_diverged_cells() -> None:
    scores = np.tile(np.array([70.0, 72.0, 71.0]), (5, 1))
    diverged = scores.copy()
    diverged[:, 1] = DIVERGED
    found = stats.compare_over_pairs(diverged)
    assert found is not None
    assert math.isfinite(found.statistic)
    assert found == stats.compare_over_pairs(np.tile(np.array([72.0, 70.0, 71.0]), (5, 1)))


@pytest.mark.parametrize("shape", [(4, 5), (6, 2)])
def test_too_little_for_a_comparison(shape: tuple[int, int]) -> None:
    assert stats.compare_over_pairs(np.random.default_rng(0).normal(size=shape)) is None


def test_nothing_to_compare_where_all_are_alike() -> None:
    assert stats.compare_over_pairs(np.full((6, 3), 70.0)) is None


def test_indistinguishable_runs_are_maximal() -> None:
    assert stats.indistinguishable([1.0, 1.5, 2.4, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert stats.indistinguishable([1.0, 1.5, 1.9, 4.0], 1.0) == [(0, 2)]
    assert stats.indistinguishable([1.0, 3.0], 1.0) == []
