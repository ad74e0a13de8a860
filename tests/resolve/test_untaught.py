"""Which trainings read nothing of the teacher: by what their code does, not by their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.opening import open_suite
from kdbench.suite.plan import Trial

PLUGIN = """
from kdbench.hookspecs import MethodSpec, ModelSpec, hookimpl
from kdbench.method import Method

class Labels(Method):
    needs_teacher = False

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}

@hookimpl
def kdbench_methods():
    return [MethodSpec("labels", "mine:Labels")]

@hookimpl
def kdbench_models():
    return [ModelSpec("other_resnet8", "kdbench.models.resnet:resnet", presets={"depth": 8})]
"""
PAIR = {"teacher": "resnet14", "student": "resnet8"}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Trial, ...]]:
    """The trials of a suite with ``none`` and one pair, with some keys replaced."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)

    def make(**keys: Any) -> tuple[Trial, ...]:
        suite: dict[str, Any] = {
            "name": "s",
            "question": "?",
            "seeds": [0],
            "data": {"name": "digits"},
            "recipe": {"epochs": 1},
            "pairs": [PAIR],
            "methods": [{"name": "none"}],
        }
        return open_suite({**suite, **keys}).plan.trials

    return make


def untaught(trials: tuple[Trial, ...]) -> list[str]:
    return [trial.label for trial in trials if trial.untaught]


def test_a_training_is_untaught_if_it_reads_no_output_no_stage_and_no_tap_of_the_teacher(plan):
    # `ab` has a stage that reads the teacher; `combine` looks at its taps in setup.
    none_alone = {"name": "combine", "methods": [{"name": "none"}]}
    names = [{"name": name} for name in ("none", "kd", "ab", "deit/none")]
    trials = plan(methods=[*names, none_alone])
    assert untaught(trials) == ["none", "deit/none"]
    assert [trial.training == "" for trial in trials] == [False, True, True, False, True]


def test_code_of_third_parties_may_read_anything(plan):
    trials = plan(methods=[{"name": "none"}, {"name": "labels"}], plugins=["mine.py"])
    assert untaught(trials) == ["none"]
    foreign_student = [{"teacher": "resnet14", "student": "other_resnet8"}]
    assert untaught(plan(pairs=foreign_student, plugins=["mine.py"])) == []
    # The teacher's code is not run by the training.
    foreign_teacher = [{"teacher": "other_resnet8", "student": "resnet8"}]
    assert untaught(plan(pairs=foreign_teacher, plugins=["mine.py"])) == ["none"]


def test_random_numbers_of_our_own_code_are_those_of_the_training(plan):
    transformer = [{"teacher": "resnet14", "student": "deit_micro", "recipe": {"drop_path": 0.1}}]
    assert untaught(plan(pairs=transformer, recipe={"epochs": 1, "optimizer": "adamw"})) == ["none"]
    assert untaught(plan(recipe={"epochs": 1, "optimizer": "timm:lamb"})) == ["none"]


def test_trainings_are_equal_if_trials_differ_in_the_teacher_alone(plan):
    pairs = [
        PAIR,
        {**PAIR, "teacher": "resnet20"},
        {**PAIR, "teacher": "resnet32", "recipe": {"lr": 0.01}},
        {**PAIR, "student": "resnet14"},
    ]
    one, same, other_recipe, other_student = plan(pairs=pairs)
    assert one.training == same.training != ""
    assert len({one.training, other_recipe.training, other_student.training}) == 3
    assert len({trial.id for trial in (one, same)}) == 2
    other_seed = plan(seeds=[1])[0]
    assert other_seed.training not in {"", one.training}
    # Another teacher for each seed, or one for all: nothing that the training reads.
    several = plan(seeds=[0, 1], teacher_seeds="with_seeds")[1]
    single = plan(seeds=[0, 1], teacher_seeds="single")[1]
    assert several.id != single.id
    assert several.training == single.training == other_seed.training
