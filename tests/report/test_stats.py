from __future__ import annotations

import itertools
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


def test_differences_are_paired_by_seed() -> None:
    ours = {0: 72.1, 1: 72.3, 2: 73.9, 7: 10.0}
    theirs = {2: 72.0, 1: 71.0, 0: 70.0, 9: 99.0}
    found = stats.paired_difference(ours, theirs)
    oracle = scipy_stats.ttest_rel([72.1, 72.3, 73.9], [70.0, 71.0, 72.0]).confidence_interval(0.95)
    assert found.n == 3
    assert found.mean == pytest.approx((2.1 + 1.3 + 1.9) / 3)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    # The seeds have much in common: unpaired, the same numbers would say nothing.
    assert found.resolved is True
    unpaired = scipy_stats.ttest_ind([72.1, 72.3, 73.9], [70.0, 71.0, 72.0]).confidence_interval(0.95)
    assert unpaired.low < 0 < unpaired.high


@pytest.mark.parametrize(
    ("differences", "resolved"), [([1.0, 1.1, 0.9], True), ([-1.0, 1.0, 0.1], False), ([-1.0, -1.1, -0.9], True)]
)
def test_a_difference_is_resolved_where_its_interval_excludes_zero(differences: list[float], resolved: bool) -> None:
    assert stats.estimate(differences).resolved is resolved


def test_pair_means_have_an_interval_from_five_pairs_on() -> None:
    four, five = stats.over_pairs([1.0, 2.0, 3.0, 4.0]), stats.over_pairs([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (four.n, four.mean, four.low, four.high) == (4, 2.5, None, None)
    assert four.std == pytest.approx(math.sqrt(5 / 3))
    half = scipy_stats.t.ppf(0.975, 4) * math.sqrt(2.5) / math.sqrt(5)
    assert (five.low, five.high) == pytest.approx((3 - half, 3 + half))


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


def test_differences_that_do_not_vary_give_no_interval() -> None:
    # One image of 500 in three seeds, whatever the order of the additions.
    found = stats.paired_difference({0: 97.8, 1: 98.0, 2: 97.6}, {0: 98.0, 1: 98.2, 2: 97.8})
    assert (found.n, found.mean) == (3, pytest.approx(-0.2))
    assert (found.low, found.high, found.resolved) == (None, None, None)
    same = stats.paired_difference({0: 97.8, 1: 98.0}, {0: 97.8, 1: 98.0})
    assert (same.mean, same.low, same.high, same.resolved) == (0.0, 0.0, 0.0, False)


def test_mean_ranks_over_pairs() -> None:
    first = np.array([[70.0, 72.0, 71.0], [71.0, 73.0, 72.0]])
    second = np.array([[60.0, 59.0, DIVERGED], [60.0, 59.0, 80.0]])
    found = stats.mean_ranks([first, second])
    assert [rank.mean for rank in found] == [(3 + 1) / 2, (1 + 2) / 2, (2 + 3) / 2]


def test_the_bootstrap_covers_what_resampling_seeds_can_give() -> None:
    # Both orders happen: of the four ways to draw two seeds of two, one has the first method ahead, two the second
    # by its larger margin, and one the second.
    scores = np.array([[71.0, 70.0], [70.0, 73.0]])
    outcomes = [
        stats.ranks(scores[list(drawn)].mean(axis=0)).tolist() for drawn in itertools.product(range(2), repeat=2)
    ]
    assert outcomes == [[1, 2], [2, 1], [2, 1], [2, 1]]
    first, second = stats.mean_ranks([scores])
    assert (first.mean, first.low, first.high) == (2, 1, 2)
    assert (second.mean, second.low, second.high) == (1, 1, 2)
    always = stats.mean_ranks([scores + np.array([10.0, 0.0])])
    assert [(rank.low, rank.high) for rank in always] == [(1, 1), (2, 2)]


def test_the_bootstrap_is_repeatable_and_needs_something_to_draw_from() -> None:
    generator = np.random.default_rng(3)
    scores = [generator.normal(70, 1, size=(3, 4)) for _ in range(2)]
    assert stats.mean_ranks(scores) == stats.mean_ranks(scores)
    lonely = stats.mean_ranks([pair[:1] for pair in scores])
    assert all(rank.low is None and rank.high is None for rank in lonely)


def test_from_five_pairs_on_the_bootstrap_draws_pairs() -> None:
    # One seed each: only the draw of pairs can move the ranks, and the first method wins 4 of 5 pairs.
    scores = [np.array([[71.0, 70.0]])] * 4 + [np.array([[70.0, 71.0]])]
    first, _ = stats.mean_ranks(scores)
    assert first.mean == pytest.approx(1.2)
    drawn = scipy_stats.binom(5, 0.2)
    assert first.low == pytest.approx(1 + drawn.ppf(0.025) / 5)
    assert first.high == pytest.approx(1 + drawn.ppf(0.975) / 5)


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
