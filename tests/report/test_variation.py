"""The details of a pair: what varies, what these seeds resolve, and images that one method alone gets right."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from kdbench.report.render import markdown, render
from kdbench.report.sections import verdict
from kdbench.report.study import read_study
from kdbench.report.variation import Variation, variation
from kdbench.results import SuiteFolder

PAIR = "resnet20:resnet8"
IMAGES = 200


def bits(right: float, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).random(IMAGES) < right
    return np.asarray(found)


def build(
    runs: Callable[..., Any], correct: Mapping[str, list[np.ndarray]], *, teachers: int = 1, without: str = ""
) -> SuiteFolder:
    """Trials of one pair, by label and seed; those of ``without`` have no correct.npy."""
    suite = runs()
    for label, rows in correct.items():
        for seed, right in enumerate(rows):
            teacher = seed % teachers
            suite.teacher("resnet20", 80.0 + teacher, sha256=f"{teacher}" * 64, seed=teacher)
            kept = None if label == without else right
            # As written by an evaluation: in the same arithmetic.
            suite.done("resnet20", "resnet8", label, seed, 100 * int(right.sum()) / IMAGES, correct=kept)
    return suite.write()


def drawn(**shares: float) -> dict[str, list[np.ndarray]]:
    return {
        label: [bits(share, 100 * index + seed) for seed in range(3)]
        for index, (label, share) in enumerate(shares.items())
    }


def of(folder: SuiteFolder) -> Variation:
    found = variation(read_study(folder), PAIR)
    assert found is not None
    return found


def test_the_leader_is_compared_with_the_baselines_and_the_second(runs: Callable[..., Any]) -> None:
    correct = drawn(none=0.5, kd=0.6, vid=0.7, rkd=0.8)
    found = of(build(runs, correct, teachers=3))
    assert (found.leader, found.images, found.new_teachers) == ("rkd", IMAGES, True)
    assert [one.label for one in found.compared] == ["none", "kd", "vid"]
    for one in found.compared:
        assert list(one.by_seed) == [0, 1, 2]
        for seed, images in one.by_seed.items():
            ours, theirs = correct["rkd"][seed], correct[one.label][seed]
            assert images.ours == sum(a > b for a, b in zip(ours, theirs, strict=True))
            assert images.theirs == sum(a < b for a, b in zip(ours, theirs, strict=True))
        tops = [100 * (a.mean() - b.mean()) for a, b in zip(correct["rkd"], correct[one.label], strict=True)]
        assert one.difference.mean == pytest.approx(np.mean(tops))
        assert one.over_seeds is not None
        assert one.over_images is not None
        assert one.over_both is not None
        # Independent draws have nothing in common, and only images vary: each part is the whole.
        whole = 100 * math.sqrt((0.8 * 0.2 + 0.6 * 0.4) / IMAGES / 3)
        for part in (one.over_seeds, one.over_images, one.over_both):
            assert part == pytest.approx(whole, rel=0.5)
    mean = np.mean([row.mean() for rows in correct.values() for row in rows])
    assert found.of_test_set == pytest.approx(100 * math.sqrt(mean * (1 - mean) / IMAGES), rel=1e-3)
    assert found.of_training is not None
    assert found.of_seeds is not None
    assert (found.of_training.freedom, found.of_seeds.freedom) == (6, 2)


def test_a_baseline_that_leads_is_compared_with_the_second(runs: Callable[..., Any]) -> None:
    found = of(build(runs, drawn(none=0.8, vid=0.6, kd=0.5)))
    assert (found.leader, [one.label for one in found.compared]) == ("none", ["kd", "vid"])
    assert not found.new_teachers


def test_without_the_images_of_each_trial_nothing_is_said_of_them(runs: Callable[..., Any]) -> None:
    found = of(build(runs, drawn(none=0.5, kd=0.6, vid=0.8), without="kd"))
    by_label = {one.label: one for one in found.compared}
    assert (by_label["kd"].over_images, by_label["kd"].over_both, by_label["kd"].by_seed) == (None, None, {})
    assert by_label["kd"].over_seeds is not None
    assert list(by_label["none"].by_seed) == [0, 1, 2]


def test_results_of_other_images_are_not_compared(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, data in (("none", "f00d"), ("kd", "beef")):
        right = bits(0.6, len(data) + ord(label[0]))
        other = {"name": "digits", "fingerprint": data, "n_test": IMAGES}
        suite.done("resnet20", "resnet8", label, 0, 100 * int(right.sum()) / IMAGES, correct=right, data=other)
    (one,) = of(suite.write()).compared
    assert (one.over_images, one.by_seed) == (None, {})


def test_one_seed_says_something_of_images_only(runs: Callable[..., Any]) -> None:
    found = of(build(runs, {label: rows[:1] for label, rows in drawn(none=0.5, kd=0.8).items()}))
    assert (found.of_training, found.of_seeds, found.power) == (None, None, "")
    (one,) = found.compared
    assert (one.over_seeds, one.over_both) == (None, None)
    assert one.over_images is not None
    assert found.of_test_set is not None


def test_a_pair_without_a_score_has_no_variation(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.diverged("resnet20", "resnet8", "kd", 0, epoch=1)
    assert variation(read_study(suite.write()), PAIR) is None


def test_the_page_says_it_below_the_table_and_not_in_the_verdict(runs: Callable[..., Any], tmp_path: Any) -> None:
    folder = build(runs, drawn(none=0.5, kd=0.8), teachers=3)
    page = render(folder, tmp_path / "report", plots=False).read_text()
    (details,) = re.findall(r'<details class="variation">.*?</details>', page, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", details))
    for said in (
        "Sources of variation, and images that one method alone classifies correctly",
        "one training", "seed and teacher", "200 test images", "kd minus", "other seeds and teachers",
        "The p-value is about these networks, not about another training.",
        "With these 3 seeds, a gain of",
    ):  # fmt: skip
        assert said in text
    assert "no interval accounts for other test images" in page
    study = read_study(folder)
    assert not any("image" in sentence for one in verdict(study)["verdicts"] for sentence in one.sentences)
    assert "McNemar" not in markdown(study)


def test_with_many_pairs_each_says_what_its_seeds_resolve(runs: Callable[..., Any], tmp_path: Any) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for pair in range(4):
        for label, top1 in (("none", 70.0), ("kd", 71.0)):
            for seed, noise in enumerate((0.3, -0.2, 0.1)):
                sign = 1 if label == "kd" else -1
                suite.done("resnet20", f"student{pair}", label, seed, top1 + (1 + pair) * sign * noise)
    folder = suite.write()
    page = render(folder, tmp_path / "report", plots=False).read_text()
    said = re.findall(r"With these 3 seeds, a gain of ([\d.]+) points is resolved", page)
    # One comparison is Student's t. Differences vary by 2 * (.3, -.2, .1); both quantiles have 2 degrees of freedom.
    std = 2 * np.std([0.3, -0.2, 0.1], ddof=1)
    expected = [(1 + pair) * std * (4.30265 + 1.06066) / math.sqrt(3) for pair in range(4)]
    assert [float(value) for value in said] == pytest.approx(expected, rel=0.01)


def test_diverged_trials_have_a_column_only_if_there_are_any(runs: Callable[..., Any], tmp_path: Any) -> None:
    for diverged in (False, True):
        suite = runs(f"diverged{diverged}")
        suite.teacher("resnet20", 80.0)
        for seed in range(2):
            suite.done("resnet20", "resnet8", "none", seed, 70.0 + seed)
        if diverged:
            suite.diverged("resnet20", "resnet8", "kd", 0, epoch=1)
        suite.plan_trial("resnet20", "resnet8", "vid", 0)
        page = render(suite.write(), tmp_path / suite.suite, plots=False).read_text()
        (table,) = re.findall(r'aria-label="Results: .*?</table>', page, flags=re.DOTALL)
        (heading,) = re.findall(r"<thead>.*?</thead>", table, flags=re.DOTALL)
        columns = re.findall(r"<th ", heading)
        assert ("diverged" in heading, "No trial diverged." in page) == (diverged, not diverged)
        # A method without a result fills the other columns with its state.
        assert f'colspan="{len(columns) - 2}"' in table


def test_the_difference_of_students_with_the_same_weights_has_no_mark(runs: Callable[..., Any], tmp_path: Any) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, tops in (("none", (70.0, 70.5)), ("kd/w0", (70.0, 70.5)), ("kd", (70.0, 70.5)), ("vid", (72.0, 72.4))):
        for seed, top1 in enumerate(tops):
            weights = b"%d" % seed if label in {"none", "kd/w0"} else None
            suite.done("resnet20", "resnet8", label, seed, top1, weights=weights)
    page = render(suite.write(), tmp_path / "report", plots=False).read_text()
    (table,) = re.findall(r'aria-label="Results: .*?</table>', page, flags=re.DOTALL)
    rows = dict(re.findall(r'<th scope="row" data-value="([^"]+)">(.*?)</tr>', table, flags=re.DOTALL))
    assert [label for label, row in rows.items() if "same weights" in row] == ["kd/w0"]
    assert "[0.00, 0.00]" not in table
    assert "none and kd/w0 have the same weights at each seed" in page
