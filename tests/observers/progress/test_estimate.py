from __future__ import annotations

from typing import Any

import pytest

from kdbench.observers.progress.estimate import TimeLeft
from kdbench.results import EpochRecord


def record(stage: str, epoch: int, seconds: float) -> EpochRecord:
    return EpochRecord(stage=stage, epoch=epoch, seconds=seconds, train_loss=1.0)


def test_nothing_is_known_before_the_first_round(trial: Any, clock: Any) -> None:
    assert TimeLeft(clock).of({"kd": trial("kd")}) is None


def test_each_method_is_expected_to_take_its_own_time(trial: Any, clock: Any) -> None:
    # none takes 1 s an epoch, crd 3 s; the teacher and the evaluation make the round last 6 s, not 4.
    none, crd, later = trial("none", epochs=10), trial("crd", epochs=10), trial("crd", seed=1, epochs=10)
    left = TimeLeft(clock)
    left.pause()
    clock.advance(6.0)
    left.epoch("none", none, record("main", 1, 1.0))
    left.epoch("crd", crd, record("main", 1, 3.0))
    left.end_round()
    assert left.of({"none": none}) == pytest.approx(9 * 1.5)
    assert left.of({"none": none, "crd": crd}) == pytest.approx(9 * 6.0)
    assert left.of({"later": later}) == pytest.approx(10 * 4.5)


def test_a_method_not_yet_seen_takes_what_its_student_takes(trial: Any, clock: Any) -> None:
    small, large = trial("none", student="resnet8"), trial("none", student="resnet110")
    left = TimeLeft(clock)
    clock.advance(12.0)
    left.epoch("small", small, record("main", 1, 2.0))
    left.epoch("large", large, record("main", 1, 10.0))
    left.end_round()
    assert left.of({"kd": trial("kd", student="resnet8", epochs=4)}) == pytest.approx(8.0)
    assert left.of({"kd": trial("kd", student="resnet110", epochs=4)}) == pytest.approx(40.0)
    assert left.of({"kd": trial("kd", student="vgg8", epochs=4)}) == pytest.approx(24.0)


def test_stages_before_the_main_one_are_expected_of_later_seeds(trial: Any, clock: Any) -> None:
    ab, later = trial("ab", epochs=2), trial("ab", seed=1, epochs=2)
    left = TimeLeft(clock)
    for stage, epoch, seconds in [("boundary", 1, 4.0), ("boundary", 2, 4.0), ("main", 1, 5.0)]:
        clock.advance(seconds)
        left.epoch("ab", ab, record(stage, epoch, seconds))
        left.end_round()
    assert left.of({"ab": ab}) == pytest.approx(5.0)
    assert left.of({"later": later}) == pytest.approx(2 * 4.0 + 2 * 5.0)


def test_earlier_invocations_count_as_done_but_not_as_measured(trial: Any, clock: Any) -> None:
    kd = trial("kd", epochs=10)
    left = TimeLeft(clock)
    left.resume("kd", kd, [record("main", epoch, 100.0) for epoch in range(1, 8)])
    left.pause()
    assert left.of({"kd": kd}) is None
    clock.advance(2.0)
    left.epoch("kd", kd, record("main", 8, 2.0))
    left.end_round()
    assert left.of({"kd": kd}) == pytest.approx(4.0)


def test_time_between_cohorts_is_not_training(trial: Any, clock: Any) -> None:
    kd = trial("kd", epochs=3)
    left = TimeLeft(clock)
    clock.advance(1000.0)
    left.pause()
    clock.advance(2.0)
    left.epoch("kd", kd, record("main", 1, 2.0))
    left.end_round()
    assert left.of({"kd": kd}) == pytest.approx(4.0)
