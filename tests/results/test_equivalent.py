"""Which finished trials can be adopted, and which open ones wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.recipe import Recipe
from kdbench.results import Cost, DataUsed, Environment, SuiteFolder, TrialRecord
from kdbench.results.cost import steps, trained
from kdbench.results.equivalent import equivalents, later
from kdbench.status import Status
from kdbench.suite.plan import Origin, TeacherPlan, Trial

RECIPE = Recipe(epochs=10, batch_size=64)


def trial(teacher: str, seed: int = 0) -> Trial:
    plan = TeacherPlan(teacher, teacher, {"name": "digits"}, RECIPE, None, None, 0)
    origin = Origin("kdbench", "1", "1")
    return Trial("s", {}, plan, "resnet8", "none", "none", seed, {}, RECIPE, origin, untaught=True)


A, B, C = (trial(name) for name in ("a", "b", "c"))


@pytest.fixture
def folder(tmp_path: Path) -> SuiteFolder:
    return SuiteFolder(tmp_path, "s")


@pytest.fixture
def finish(folder: SuiteFolder) -> Callable[..., None]:
    def write(done: Trial, **fields: Any) -> None:
        place = folder.trial(done.id)
        place.begin(TrialRecord.of(done))
        place.weights.write_bytes(b"")
        common = {
            "id": done.id,
            "status": Status.DONE,
            "epoch": 10,
            "metrics": {"top1": 90.0},
            "cost": Cost(seconds=1.0, teacher_seconds=0.0, extra_epochs=0),
            "data": DataUsed(name="digits", fingerprint="f"),
            "environment": Environment(device="cpu"),
            "finished": "2026-01-01T00:00:00+00:00",
        }
        place.finish(**common | fields)

    return write


def found(folder: SuiteFolder, *wanted: Trial) -> list[str]:
    return [place.identifier for one in equivalents(folder, [t.training for t in wanted]).values() for place in one]


def test_finished_trials_of_a_training_are_found_those_that_were_trained_first(folder, finish):
    finish(B, adopted_from=C.id)
    finish(C)
    finish(trial("a", seed=1))
    assert found(folder, A) == [C.id, B.id]
    assert equivalents(folder, [A.training], lambda training, result: result.adopted_from is not None).keys() == {
        A.training
    }
    assert equivalents(folder, [A.training], lambda *_: False) == {}
    assert equivalents(folder, []) == {}


def test_what_is_damaged_or_unfinished_is_not_found(folder, finish):
    finish(A)
    folder.trial(A.id).weights.write_bytes(b"changed")
    folder.trial(B.id).begin(TrialRecord.of(B))
    # Somebody has renamed the folder of another trial.
    finish(C)
    folder.trial(C.id).path.rename(folder.path / "renamed")
    assert found(folder, A) == []


def test_the_first_is_trained_or_one_that_has_begun(folder, finish):
    taught = replace(B, untaught=False, method="kd")
    assert later([A, taught, B, C], folder, ()) == {B.id: A.id, C.id: A.id}
    assert later([A, taught, B, C], folder, {A.training}) == {}
    for begun in (B, C):
        folder.trial(begun.id).begin(TrialRecord.of(begun))
        folder.trial(begun.id).checkpoint.write_bytes(b"")
    # Both that have begun resume.
    assert later([A, taught, B, C], folder, ()) == {A.id: B.id}


def test_a_plan_counts_each_training_once(folder, finish):
    taught = replace(B, untaught=False, method="kd")
    assert trained([A, taught, B, C], folder) == [A, taught]
    # 21 batches of 64 in 1297 images, ten epochs, two trainings.
    assert steps(trained([A, taught, B, C], folder), 1297) == 2 * 210
    finish(A)
    assert trained([taught, B, C], folder) == [taught]
    folder.trial(C.id).begin(TrialRecord.of(C))
    folder.trial(C.id).checkpoint.write_bytes(b"")
    assert trained([taught, B, C], folder) == [taught, C]
