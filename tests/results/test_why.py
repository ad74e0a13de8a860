"""Why a trial is pending: what is new of it, by the trials that the results folder has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.recipe import Recipe
from kdbench.results import SuiteFolder, TeacherRecord, TrialRecord
from kdbench.results.why import explain
from kdbench.status import Status
from kdbench.suite.plan import Origin, Plan, TeacherPlan, Trial
from kdbench.suite.schema import Suite

DATA = {"name": "digits", "train_limit": 128}
RECIPE = Recipe(epochs=10, drops=(5,))
TEACHER = TeacherPlan("big", "resnet20", DATA, RECIPE, None, None, 0)
TRIAL = Trial(
    suite="small",
    data=DATA,
    teacher=TEACHER,
    student="resnet8",
    method="kd",
    label="kd",
    seed=1,
    settings={"temperature": 4.0, "weight": 1.0},
    recipe=RECIPE,
    origin=Origin("kdbench", "1.0", "abc"),
)
SUITE = Suite.model_validate(
    {
        "name": "small",
        "question": "Why?",
        "data": {"name": "digits"},
        "recipe": {"epochs": 10},
        "pairs": [{"teacher": "big", "student": "resnet8"}],
        "methods": [{"name": "kd"}],
        "seeds": [1],
    }
)


@pytest.fixture
def reason(tmp_path: Path) -> Callable[..., str]:
    """``reason(now, *stored)``: why ``now`` is pending beside the stored trials."""

    def go(now: Trial, *stored: Trial) -> str:
        folder = SuiteFolder(tmp_path, "small")
        for trial in stored:
            folder.trial(trial.id).begin(TrialRecord.of(trial))
            folder.teacher(trial.teacher.key).begin(TeacherRecord.of(trial.teacher))
        (explained,) = explain(Plan(SUITE, (now,)), folder).trials
        assert explained.status is Status.PENDING
        return explained.reason

    return go


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**RECIPE.model_dump(), **changes})


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ({"student": "resnet14"}, "new"),
        ({"method": "rkd"}, "new"),
        ({"teacher": replace(TEACHER, model="resnet32")}, "new"),
        ({"seed": 2}, "new seed"),
        ({"origin": Origin("kdbench", "1.0", "abd")}, "new source"),
        ({"student_source": "12"}, "new source of the student"),
        ({"settings": {"temperature": 8.0, "weight": 1.0}}, "new settings (temperature)"),
        ({"recipe": recipe(lr=0.1)}, "new recipe (lr)"),
        (
            {"recipe": recipe(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0)},
            "new recipe (lr, momentum, nesterov and 1 more)",
        ),
        ({"teacher": replace(TEACHER, recipe=recipe(epochs=20))}, "new teacher (epochs)"),
        ({"teacher": replace(TEACHER, model_source="12")}, "new teacher"),
        (
            {"data": {"name": "digits"}, "teacher": replace(TEACHER, data={"name": "digits"})},
            "new data (train_limit)",
        ),
        (
            {"settings": {"temperature": 4.0}, "origin": Origin("kdbench", "1.0", "abd")},
            "new settings (weight); new source",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_new(reason: Callable[..., str], now: dict[str, Any], why: str) -> None:
    assert reason(replace(TRIAL, **now), TRIAL) == why


def test_in_an_empty_folder_all_is_new(reason: Callable[..., str]) -> None:
    assert reason(TRIAL) == "new"


def test_the_nearest_trial_counts(reason: Callable[..., str]) -> None:
    far = replace(TRIAL, recipe=recipe(lr=0.1, momentum=0.5), settings={})
    near = replace(TRIAL, origin=Origin("kdbench", "1.0", "abd"))
    assert reason(TRIAL, far, near) == "new source"


def test_results_of_another_protocol(reason: Callable[..., str], tmp_path: Path) -> None:
    place = SuiteFolder(tmp_path, "small").trial("old")
    place.begin(TrialRecord.of(TRIAL).model_copy(update={"id": "old", "protocol": 1}))
    assert reason(TRIAL) == "trained under protocol 1"


def test_an_interrupted_trial_whose_teacher_is_gone(reason: Callable[..., str]) -> None:
    interrupted = TRIAL.with_status(Status.PENDING, "interrupted after 3 epochs")
    assert reason(interrupted, TRIAL) == "interrupted after 3 epochs; its teacher is missing"


def test_a_method_listed_a_second_time_is_new(tmp_path: Path) -> None:
    """Not the other one with new settings: that one is still planned."""
    folder = SuiteFolder(tmp_path, "small")
    folder.trial(TRIAL.id).begin(TrialRecord.of(TRIAL))
    second = replace(TRIAL, label="soft", settings={"temperature": 8.0, "weight": 1.0})
    explained = explain(Plan(SUITE, (TRIAL.with_status(Status.DONE), second)), folder)
    assert [(t.status, t.reason) for t in explained.trials] == [("done", ""), ("pending", "new")]
