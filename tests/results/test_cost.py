"""What a plan costs: counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.recipe import Recipe
from kdbench.results import Cost, DataUsed, Environment, SuiteFolder, TeacherRecord, TrialRecord
from kdbench.results.cost import hours, repeated_passes, steps, teacher_hours, teacher_steps
from kdbench.status import Status
from kdbench.suite.plan import Cohort, Origin, TeacherPlan, Trial

RECIPE = Recipe(epochs=10, batch_size=64)
TEACHER = TeacherPlan("big", "resnet20", {"name": "digits"}, RECIPE, None, None, 0)
TRIAL = Trial("s", {}, TEACHER, "resnet8", "kd", "kd", 0, {}, RECIPE, Origin("kdbench", "1", "1"))


@pytest.fixture
def folder(tmp_path: Path) -> SuiteFolder:
    return SuiteFolder(tmp_path, "s")


def finish(
    folder: SuiteFolder, trial: Trial, *, status: Status = Status.DONE, device: str = "cpu", day: int = 1, **cost: float
) -> None:
    place = folder.trial(trial.id)
    place.begin(TrialRecord.of(trial))
    place.weights.write_bytes(b"")
    place.finish(
        id=trial.id,
        status=status,
        epoch=3,
        metrics={"top1": 90.0} if status is Status.DONE else {},
        cost=Cost(**{"extra_epochs": 0, "teacher_seconds": 0.0, **cost}),
        data=DataUsed(name="digits", fingerprint="f"),
        environment=Environment(device=device),
        finished=f"2026-01-{day:02}T00:00:00+00:00",
    )


def hours_alone(trials: list[Trial], earlier: list[Trial], folder: SuiteFolder) -> float:
    found = hours(trials, earlier, folder)
    assert found is not None
    return found[0]


def test_steps_round_each_epoch_up() -> None:
    assert steps([TRIAL], 1297) == 21 * 10
    assert steps([TRIAL], 1280) == 20 * 10
    small = replace(TRIAL, recipe=Recipe(epochs=3, batch_size=1000))
    assert steps([TRIAL, small, small], 1297) == 21 * 10 + 2 * 2 * 3
    assert steps([], 1297) == 0
    # A single image left over makes no step of its own.
    assert steps([TRIAL], 1281) == 20 * 10
    assert steps([TRIAL], 1) == 10


def test_hours_are_unknown_without_a_result_of_the_pair(folder: SuiteFolder) -> None:
    assert hours([TRIAL], [TRIAL], folder) is None
    finish(folder, TRIAL, seconds=3600.0)
    other = replace(TRIAL, student="resnet14")
    assert hours([other], [TRIAL, other], folder) is None
    assert hours_alone([], [TRIAL], folder) == 0.0


def test_hours_follow_the_method_and_the_epochs(folder: SuiteFolder) -> None:
    finish(folder, TRIAL, seconds=1800.0, teacher_seconds=1800.0)
    second = replace(TRIAL, seed=1)
    finish(folder, second, seconds=7200.0)
    slow = replace(TRIAL, method="crd", label="crd")
    finish(folder, slow, seconds=36000.0)
    earlier = [TRIAL, second, slow]
    # 360 and 720 seconds an epoch; over ten epochs that is an hour and two: 1.5 on average.
    assert hours_alone([replace(TRIAL, seed=2)], earlier, folder) == pytest.approx(1.5)
    assert hours_alone([replace(TRIAL, seed=2, recipe=Recipe(epochs=20))], earlier, folder) == pytest.approx(3.0)
    assert hours_alone([replace(slow, seed=2)], earlier, folder) == pytest.approx(10.0)
    # A method without results costs what the pair's methods do.
    assert hours_alone([replace(TRIAL, method="rkd")], earlier, folder) == pytest.approx(13 / 3)
    assert hours_alone([replace(TRIAL, seed=2), replace(slow, seed=2)], earlier, folder) == pytest.approx(11.5)


def test_epochs_of_earlier_stages_count(folder: SuiteFolder) -> None:
    staged = replace(TRIAL, method="ab", label="ab")
    finish(folder, staged, seconds=3600.0, extra_epochs=10)
    # 20 epochs took an hour, and the next one will train its 10 extra epochs too.
    assert hours_alone([replace(staged, seed=1)], [staged], folder) == pytest.approx(1.0)


def test_unfinished_trials_are_not_used_for_the_estimate(folder: SuiteFolder) -> None:
    finish(folder, TRIAL, status=Status.DIVERGED, seconds=1.0)
    assert hours([replace(TRIAL, seed=1)], [TRIAL], folder) is None


def test_other_devices_results_tell_nothing(folder: SuiteFolder) -> None:
    earlier = [replace(TRIAL, seed=seed) for seed in range(3)]
    finish(folder, earlier[0], seconds=36000.0, device="cpu", day=1)
    finish(folder, earlier[1], seconds=3600.0, device="NVIDIA H200", day=3)
    finish(folder, earlier[2], seconds=36000.0, device="cpu", day=2)
    assert hours([replace(TRIAL, seed=3)], earlier, folder) == (pytest.approx(1.0), "NVIDIA H200")


def finish_teacher(
    folder: SuiteFolder, teacher: TeacherPlan, seconds: float, device: str = "cpu", day: int = 1
) -> None:
    place = folder.teacher(teacher.key)
    place.begin(TeacherRecord.of(teacher))
    place.weights.write_bytes(b"")
    place.finish(
        id=teacher.key,
        status=Status.DONE,
        epoch=3,  # the best one on validation
        metrics={"top1": 90.0},
        cost=Cost(seconds=seconds, teacher_seconds=0.0, extra_epochs=0),
        data=DataUsed(name="digits", fingerprint="f"),
        environment=Environment(device=device),
        finished=f"2026-01-{day:02}T00:00:00+00:00",
    )


def test_teachers_take_steps_unless_their_weights_are_given() -> None:
    given = replace(TEACHER, recipe=None, weights="a.pth")
    assert teacher_steps([TEACHER, replace(TEACHER, seed=1), given], 1297) == 2 * 21 * 10
    assert teacher_steps([], 1297) == 0


def test_hours_of_teachers_follow_others_of_the_name(folder: SuiteFolder) -> None:
    seeds = [replace(TEACHER, seed=seed) for seed in range(4)]
    assert teacher_hours(seeds[:1], seeds, folder) is None
    finish_teacher(folder, seeds[0], 1800.0)
    finish_teacher(folder, seeds[1], 3600.0)
    # 180 and 360 seconds an epoch; ten epochs take three quarters of an hour on average.
    assert teacher_hours(seeds[2:], seeds, folder) == (pytest.approx(1.5), "cpu")
    assert teacher_hours([replace(TEACHER, recipe=None, weights="a")], seeds, folder) == (0.0, "cpu")
    assert teacher_hours([replace(TEACHER, name="other")], seeds, folder) is None
    finish_teacher(folder, seeds[2], 36.0, device="NVIDIA H200", day=2)
    assert teacher_hours(seeds[3:], seeds, folder) == (pytest.approx(0.01), "NVIDIA H200")


def test_parts_repeat_the_pass_of_the_teacher(folder: SuiteFolder) -> None:
    trials = tuple(replace(TRIAL, method=f"m{number}") for number in range(4))
    cohort = Cohort(TEACHER, 0, 10, 64, trials)
    assert repeated_passes([cohort], 1, 1280, folder) == (0, None)
    assert repeated_passes([cohort, cohort], 3, 1280, folder) == (2 * 2 * 20 * 10, None)
    # Four parts have one trial each, and more parts have none.
    assert repeated_passes([cohort], 9, 1280, folder) == (3 * 20 * 10, None)
    finish(folder, trials[0], seconds=100.0, teacher_seconds=2.0)
    finish(folder, trials[1], seconds=100.0, teacher_seconds=4.0)
    # A pass takes four shares of three seconds.
    assert repeated_passes([cohort], 3, 1280, folder) == (2 * 20 * 10, 2 * 12.0)
