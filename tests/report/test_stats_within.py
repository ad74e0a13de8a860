"""Comparisons on one pair: published tables, other implementations, and studies with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench.report import stats
from kdbench.report.stats import Noise


def table(scores: np.ndarray) -> dict[str, dict[int, float]]:
    return {f"m{row}": dict(enumerate(map(float, values))) for row, values in enumerate(scores)}


@pytest.mark.parametrize(
    ("comparisons", "freedom", "two_sided", "published"),
    [
        # Dunnett, Biometrics 20 (1964), tables II and III, at 0.05; one-sided: Dunnett 1955, table 1a.
        (2, 10, True, 2.57), (3, 10, True, 2.76), (2, 1_000_000, True, 2.21), (3, 1_000_000, True, 2.35),
        (9, 1_000_000, True, 2.69), (2, 10, False, 2.15), (3, 10, False, 2.34), (9, 10, False, 2.81),
        (2, 1_000_000, False, 1.92), (9, 1_000_000, False, 2.42),
    ],
)  # fmt: skip
def test_critical_values_are_the_published_ones(comparisons, freedom, two_sided, published):
    assert stats.dunnett(comparisons, freedom, two_sided=two_sided) == pytest.approx(published, abs=0.006)


def test_one_comparison_is_students():
    assert stats.dunnett(1, 7) == pytest.approx(scipy_stats.t.ppf(0.975, 7))
    assert stats.dunnett(1, 7, two_sided=False) == pytest.approx(scipy_stats.t.ppf(0.95, 7))


def test_critical_values_agree_with_scipys():
    generator = np.random.default_rng(0)
    groups, control = [generator.normal(size=6) for _ in range(5)], generator.normal(size=6)
    interval = scipy_stats.dunnett(*groups, control=control, random_state=0).confidence_interval()
    std = math.sqrt(np.mean([np.var(group, ddof=1) for group in (*groups, control)]))
    half = (interval.high - interval.low) / 2 / (std * math.sqrt(2 / 6))
    # SciPy integrates at random points.
    assert stats.dunnett(5, 30) == pytest.approx(half.mean(), rel=2e-3)


def test_the_noise_is_what_method_and_seed_do_not_explain():
    generator = np.random.default_rng(1)
    scores = 50 + generator.normal(0, 1, (6, 4)) + generator.normal(0, 2, (6, 1)) + generator.normal(0, 3, (1, 4))
    found = stats.noise(table(scores))
    residuals = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    # At 50 %, all accuracies have nearly the same variance.
    assert found.std == pytest.approx(math.sqrt((residuals**2).sum() / 15), rel=0.02)
    assert (found.freedom, found.own) == (15, {})


def test_a_missing_score_costs_one_degree_of_freedom():
    scores = table(70 + np.random.default_rng(2).normal(0, 1, (4, 3)))
    del scores["m3"][2]
    found = stats.noise(scores)
    assert found.freedom == 5


@pytest.mark.parametrize("scores", [np.full((3, 4), 98.2), 98 + np.arange(4.0) * np.ones((3, 1)), np.ones((3, 1))])
def test_nothing_that_varies_is_no_noise(scores):
    assert stats.noise(table(scores)) is None


def test_near_the_ceiling_scores_vary_less():
    low, high = table(np.array([[60.0, 62.0, 61.0], [98.0, 98.2, 98.1]])).values()
    found = stats.noise({"low": low, "high": high})
    ratio = math.sqrt(0.61 * 0.39 / (0.981 * 0.019))
    assert found.scales["low"] / found.scales["high"] == pytest.approx(ratio)
    assert found.of_difference("low", "low", 2) / found.of_difference("high", "high", 2) == pytest.approx(ratio)
    assert found.of_difference("low", "high", 1) == pytest.approx(found.std * math.hypot(*found.scales.values()))


def test_one_method_alone_has_the_paired_interval():
    ours, theirs = [71.0, 71.9, 73.2, 72.2], [70.0, 71.2, 72.0, 70.9]
    scores = table(np.array([theirs, ours]))
    (gain,) = stats.gains(scores, "m0", stats.noise(scores)).values()
    oracle = scipy_stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (gain.n, gain.mean) == (4, pytest.approx(np.mean(ours) - np.mean(theirs)))
    assert (gain.low, gain.high) == pytest.approx((oracle.low, oracle.high), rel=0.01)


def test_gains_are_over_common_seeds():
    scores = {"none": {0: 70.0, 1: 71.0, 2: 72.0}, "kd": {1: 72.0, 2: 73.5, 9: 0.0}, "vid": {5: 70.0}}
    found = stats.gains(scores, "none", stats.noise(scores))
    assert (found["kd"].n, found["kd"].mean) == (2, 1.25)
    assert (found["vid"].n, found["vid"].low) == (0, None)


def test_a_method_that_varies_more_has_an_interval_of_its_own():
    scores = 70 + np.random.default_rng(3).normal(0, 0.1, (8, 4))
    scores[5] += [8.0, -8.0, 4.0, -4.0]
    found = stats.noise(table(scores))
    assert list(found.own) == ["m5"]
    assert found.std < 0.2
    gains = stats.gains(table(scores), "m0", found)
    # Seven comparisons: Bonferroni's correction of the paired interval.
    level = 1 - 0.05 / 7
    oracle = scipy_stats.ttest_rel(scores[5], scores[0]).confidence_interval(level)
    assert (gains["m5"].low, gains["m5"].high) == pytest.approx((oracle.low, oracle.high))
    assert gains["m1"].high - gains["m1"].low < 1


def test_the_best_is_told_from_those_that_may_be_it():
    scores = table(np.array([[70.0, 70.2, 70.1], [72.0, 72.3, 72.1], [72.1, 72.0, 72.2], [60.0, 60.3, 60.2]]))
    found = stats.behind_best(scores, stats.noise(scores))
    assert {label: stats.is_excluded(distance) for label, distance in found.items()} == {
        "m0": True, "m1": False, "m2": False, "m3": True,
    }  # fmt: skip
    assert found["m3"].mean == pytest.approx(60.1666667 - 72.1333333)
    assert found["m3"].high == 0
    assert found["m1"].high > 0
    assert stats.behind_best({"alone": {0: 1.0}}, None)["alone"].low is None


def test_without_noise_there_is_no_interval():
    scores = table(np.array([[98.0, 98.0], [98.2, 98.2]]))
    (gain,) = stats.gains(scores, "m0", stats.noise(scores)).values()
    assert (gain.mean, gain.low, gain.resolved) == (pytest.approx(0.2), None, None)
    assert not any(map(stats.is_excluded, stats.behind_best(scores, None).values()))


def test_a_gain_is_resolved_as_often_as_promised():
    seeds, std, methods, draws = 3, 0.4, 8, 400
    known = Noise(std, (methods - 1) * (seeds - 1), {})
    gain = stats.resolvable(known, seeds, methods - 1)
    generator, resolved = np.random.default_rng(4), 0
    for _ in range(draws):
        scores = 70 + generator.normal(0, std, (methods, seeds))
        scores[1] += gain
        found = stats.gains(table(scores), "m0", stats.noise(table(scores)))
        resolved += bool(found["m1"].resolved)
    # Three standard errors of 400 draws are 0.06.
    assert resolved / draws == pytest.approx(stats.POWER, abs=0.06)


def test_the_number_of_seeds_is_the_smallest_that_resolves():
    known = Noise(0.4, 14, {})
    needed = stats.seeds_needed(known, 0.3, 7)
    least = {n: stats.resolvable(Noise(0.4, 7 * (n - 1), {}), n, 7) for n in (needed - 1, needed)}
    assert least[needed] <= 0.3 < least[needed - 1]
    assert stats.seeds_needed(known, 1e-3, 7) is None


def test_students_that_are_the_same_count_once():
    scores = table(70 + np.random.default_rng(11).normal(0, 0.5, (5, 3)))
    twice = scores | {"twin": scores["m1"]}
    same = {"twin": "m1", "m1": "m1"}
    alone, found = stats.noise(scores), stats.noise(twice, same)
    assert (found.std, found.freedom) == (alone.std, alone.freedom)
    assert found.of_difference("twin", "m0", 3) == alone.of_difference("m1", "m0", 3)
    expected = stats.gains(scores, "m0", alone)
    assert stats.gains(twice, "m0", found, same=same) == expected | {"twin": expected["m1"]}
    # The difference of the same students is 0, and nothing is uncertain about it.
    gain = stats.gains(twice, "m1", found, same=same)["twin"]
    assert (gain.mean, gain.low, gain.high, gain.resolved) == (0, 0, 0, False)
    # Of other students with the same scores, it is uncertain.
    by_chance = stats.gains(twice, "m1", stats.noise(twice))["twin"]
    assert by_chance.low < 0 == by_chance.mean < by_chance.high


def test_the_same_students_as_the_best_may_be_the_best():
    scores = table(np.array([[70.0, 70.2, 70.1], [72.0, 72.3, 72.1], [60.0, 60.3, 60.2]]))
    twice, same = scores | {"twin": scores["m1"]}, {"twin": "m1"}
    found = stats.behind_best(twice, stats.noise(twice, same), same=same)
    assert [label for label, distance in found.items() if not stats.is_excluded(distance)] == ["m1", "twin"]
    assert (found["twin"].mean, found["twin"].low, found["twin"].high) == (0, 0, 0)
    assert found["m0"] == stats.behind_best(scores, stats.noise(scores))["m0"]
