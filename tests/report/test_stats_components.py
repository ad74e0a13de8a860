"""Where variation comes from: classical formulas, and studies whose parts are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench.report import stats
from kdbench.report.stats import Noise

DRAWS = 600


def table(scores: np.ndarray) -> dict[str, dict[int, float]]:
    return {f"m{row}": dict(enumerate(map(float, values))) for row, values in enumerate(scores)}


def studies(seed_std: float, own: float = 0.4) -> list[tuple[dict[str, dict[int, float]], Noise]]:
    """Six methods near 50 %, where all scores have the same variance, and four seeds."""
    generator = np.random.default_rng(5)
    means = 50 + generator.normal(0, 1, (DRAWS, 6, 1))
    scores = means + generator.normal(0, seed_std, (DRAWS, 1, 4)) + generator.normal(0, own, (DRAWS, 6, 4))
    drawn = []
    for one in scores:
        found = stats.noise(table(one))
        assert found is not None
        drawn.append((table(one), found))
    return drawn


@pytest.mark.parametrize("seed_std", [0.3, 1.0])
def test_both_parts_of_simulated_studies_are_found(seed_std):
    own, common = [], []
    for scores, found in studies(seed_std):
        seeds = stats.of_seeds(scores, found)
        assert seeds is not None
        own.append(stats.of_training(found))
        common.append(seeds)
    # The noise is sometimes estimated without one method, which its own chance made the noisiest.
    assert np.mean([one.std**2 for one in own]) == pytest.approx(0.4**2, rel=0.05)
    # Of 600 estimates from 3 degrees of freedom; those of 0 would be negative.
    assert np.mean([one.std**2 for one in common]) == pytest.approx(seed_std**2, rel=0.15)
    # Two standard errors of a share of 600 near .95 are .02.
    assert np.mean([one.low <= 0.4 <= one.high for one in own]) == pytest.approx(0.95, abs=0.03)
    assert np.mean([one.low <= seed_std <= one.high for one in common]) == pytest.approx(0.95, abs=0.03)


def test_without_a_common_effect_the_interval_begins_at_0():
    found = [stats.of_seeds(scores, noise) for scores, noise in studies(0.0)]
    assert np.mean([one is not None and one.low == 0 for one in found]) > 0.94
    assert all(one is not None and one.std >= 0 for one in found)


def test_the_interval_of_the_noise_is_that_of_a_sample_variance():
    freedom = 14
    spread = stats.of_training(Noise(0.5, freedom, {}))
    # The bounds at which a value of the chi-squared statistic as extreme has a probability of 2.5 %.
    assert scipy_stats.chi2.sf(freedom * 0.25 / spread.low**2, freedom) == pytest.approx(0.025)
    assert scipy_stats.chi2.cdf(freedom * 0.25 / spread.high**2, freedom) == pytest.approx(0.025)
    assert (spread.std, spread.freedom) == (0.5, freedom)


def test_the_common_part_is_that_of_the_analysis_of_variance():
    scores = 50 + np.random.default_rng(6).normal(0, 0.3, (5, 3)) + np.array([0.0, 2.0, -1.0])
    found = stats.noise(table(scores))
    seeds = stats.of_seeds(table(scores), found)
    assert seeds is not None
    by_seed = 5 * ((scores.mean(axis=0) - scores.mean()) ** 2).sum() / 2
    assert seeds.std == pytest.approx(math.sqrt((by_seed - found.std**2) / 5))
    assert seeds.freedom == 2
    # Each bound is where the ratio of the mean squares is as extreme, with the chi-squared limit of the first.
    ratio = by_seed / found.std**2
    low = by_seed * 2 * (1 - scipy_stats.f.ppf(0.975, 2, found.freedom) / ratio) / 5 / scipy_stats.chi2.ppf(0.975, 2)
    assert seeds.low == pytest.approx(math.sqrt(low))
    assert seeds.high > 3 * seeds.std


@pytest.mark.parametrize(
    "scores",
    [{"a": {0: 50.0, 1: 51.0}, "b": {0: 50.0}}, {"a": {0: 50.0, 1: 51.0}}, {"a": {0: 50.0}, "b": {0: 51.0}}, {}],
)
def test_no_common_part_without_a_whole_table(scores):
    assert stats.of_seeds(scores, Noise(0.4, 3, {})) is None


def test_a_method_with_a_noise_of_its_own_is_not_in_the_common_part():
    scores = table(np.array([[50.0, 51.0, 52.0], [60.0, 61.0, 62.1], [10.0, 90.0, 50.0]]))
    without = {label: scores[label] for label in ("m0", "m1")}
    found = Noise(0.1, 2, {"m2": 40.0})
    assert stats.of_seeds(scores, found) == stats.of_seeds(without, Noise(0.1, 2, {}))


def test_students_that_are_the_same_count_once_in_the_common_part():
    scores = table(50 + np.random.default_rng(12).normal(0, 1, (3, 4)))
    found = Noise(0.3, 6, {})
    twice = stats.of_seeds(scores | {"twin": scores["m1"]}, found, same={"twin": "m1"})
    assert twice == stats.of_seeds(scores, found)
    assert twice != stats.of_seeds(scores | {"twin": scores["m1"]}, found)


def test_one_accuracy_varies_as_a_count_of_images():
    generator = np.random.default_rng(7)
    drawn = 100 * generator.binomial(500, 0.97, 20_000) / 500
    assert stats.of_one_test_set(97.0, 500) == pytest.approx(drawn.std(), rel=0.02)
    assert stats.of_one_test_set(100.0, 500) == 0


def test_the_difference_of_two_networks_varies_by_the_images_that_one_alone_gets_right():
    # 30 and 18 of 1000 images; McNemar 1947, Dietterich 1998.
    ours, theirs = np.zeros((2, 1, 1000), dtype=bool)
    ours[0, :730] = True
    theirs[0, 30:748] = True
    only_ours, only_theirs = 30, 18
    found = stats.of_images(ours, theirs)
    std = 100 * math.sqrt(only_ours + only_theirs - (only_ours - only_theirs) ** 2 / 1000) / 1000
    assert found.std == pytest.approx(std, rel=1e-3)
    assert found.own is None
    assert found.with_seeds(0.3) is None


def test_the_parts_of_seeds_and_images_are_those_of_two_way_analysis_of_variance():
    generator = np.random.default_rng(8)
    ours, theirs = generator.random((2, 3, 40)) < 0.7
    difference = 100.0 * (ours.astype(float) - theirs)
    by_image, by_seed, whole = difference.mean(axis=0), difference.mean(axis=1), difference.mean()
    rest = sum(
        (difference[s, i] - by_seed[s] - by_image[i] + whole) ** 2 for s in range(3) for i in range(40)
    ) / (2 * 39)  # fmt: skip
    found = stats.of_images(ours, theirs)
    assert found.std == pytest.approx(math.sqrt(((by_image - whole) ** 2).sum() / 39 / 40))
    assert found.own == pytest.approx(rest / 120)
    assert found.own < found.std**2 < 36**2
    assert found.with_seeds(36.0) == pytest.approx(math.sqrt(36**2 + found.std**2 - found.own))
    # However small the estimated noise is: both together are not less than one of them.
    assert found.with_seeds(0.1) == pytest.approx(found.std)


def correct(generator: np.random.Generator, seeds: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Two methods on new images and with new seeds. Some images suit one of them, and each seed has its luck."""
    difficulty = generator.normal(0.8, 1.2, images)
    found = []
    for _ in range(2):
        suits = generator.normal(0, 0.7, images)
        luck = generator.normal(0, 0.08, (seeds, 1))
        found.append(difficulty + suits + luck + generator.logistic(0, 0.4, (seeds, images)) > 0)
    return found[0], found[1]


def test_a_repetition_varies_as_said():
    generator = np.random.default_rng(9)
    seeds, images, repetitions = 3, 400, 1500
    differences, of_images, both = [], [], []
    for _ in range(repetitions):
        ours, theirs = correct(generator, seeds, images)
        by_seed = 100 * (ours.mean(axis=1) - theirs.mean(axis=1))
        differences.append(by_seed.mean())
        found = stats.of_images(ours, theirs)
        of_images.append(found.std**2)
        both.append(found.with_seeds(by_seed.std(ddof=1) / math.sqrt(seeds)) ** 2)
    # What the repetitions show, over seeds and images; its relative standard error is .04.
    assert np.mean(both) == pytest.approx(np.var(differences), rel=0.1)
    # Adding both standard deviations would count the images of single trainings twice.
    assert np.mean(of_images) < np.mean(both)
    # The seeds stay, the images are new.
    generator = np.random.default_rng(10)
    ours, theirs = correct(generator, seeds, 200_000)
    parts = 100 * (ours.mean(axis=0) - theirs.mean(axis=0)).reshape(-1, images).mean(axis=1)
    assert np.mean(of_images) == pytest.approx(parts.var(), rel=0.2)
