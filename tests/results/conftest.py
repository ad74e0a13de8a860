"""Results folders of several machines, made by the records and folders through which the engine writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.claims import CLAIMS
from kdbench.models.weights import weights_sha256, write_weights
from kdbench.recipe import Recipe
from kdbench.results import (
    EpochRecord,
    Failure,
    PlanRecord,
    SuiteFolder,
    TeacherRecord,
    TeacherUsed,
    TrialFolder,
    TrialRecord,
    store_code,
)
from kdbench.status import Status
from kdbench.suite.plan import Origin, Plan, TeacherPlan, Trial
from kdbench.suite.schema import Suite

DATA = {"name": "digits", "content": "f00d"}
EPOCH = EpochRecord(epoch=1, stage="main", train_loss=2.0, seconds=1.5)


class Lab:
    """A results folder with one suite, one pair and one teacher."""

    def __init__(self, output: Path, suite: str = "small", torch_version: str = "2.11.0") -> None:
        self.output = output
        self.folder = SuiteFolder(output, suite)
        self.torch_version = torch_version
        self.day = 1
        self.recipe = Recipe(epochs=10, drops=(5,))
        self.teacher = TeacherPlan("big", "resnet20", DATA, self.recipe, None, None, 0)
        self.teacher_sha256 = ""
        self.trials: list[Trial] = []

    def planned(self, method: str = "kd", seed: int = 0, **changes: Any) -> Trial:
        """A trial of the plan, without results."""
        trial = Trial(
            suite=self.folder.path.name,
            data=DATA,
            teacher=self.teacher,
            student="resnet8",
            method=method,
            label=method,
            seed=seed,
            settings={"temperature": 4.0},
            recipe=self.recipe,
            origin=Origin("kdbench", "1.0", "abc"),
        )
        self.trials.append(replace(trial, **changes))
        return self.trials[-1]

    def train_teacher(self, weight: float = 1.0, **changes: Any) -> Path:
        place = self.folder.teacher(self.teacher.key)
        state = {"fc.weight": torch.full((2, 3), weight), "count": torch.tensor(7)}
        self.teacher_sha256 = weights_sha256(state)
        place.begin(TeacherRecord.of(self.teacher))
        place.append_epoch(EPOCH)
        write_weights(place.weights, state)
        place.finish(**self._result(self.teacher.key, 95.0) | {"sha256": self.teacher_sha256} | changes)
        return place.path

    def train(self, method: str = "kd", seed: int = 0, top1: float = 90.0, weight: float = 1.0, **changes: Any) -> Path:
        """A finished trial, with the teacher if there is none."""
        if not self.folder.teacher(self.teacher.key).path.exists():
            self.train_teacher()
        trial = self.planned(method, seed, **changes.pop("trial", {}))
        place = self.folder.trial(trial.id)
        place.begin(TrialRecord.of(trial))
        store_code(place.path, {"method/loss.py": b"LOSS = 1\n"})
        place.append_epoch(EPOCH)
        fields = self._result(trial.id, top1)
        fields["teacher"] = TeacherUsed(key=self.teacher.key, sha256=self.teacher_sha256, top1=95.0, seconds=9.0)
        fields |= changes
        if fields["status"] is Status.DONE:
            write_weights(place.weights, {"fc.weight": torch.full((3,), weight)})
        else:
            fields["metrics"] = {}
        place.finish(**fields)
        return place.path

    def interrupt(self, method: str = "kd", seed: int = 0) -> Path:
        trial = self.planned(method, seed)
        place = self.folder.trial(trial.id)
        place.begin(TrialRecord.of(trial))
        place.append_epoch(EPOCH)
        place.checkpoint.write_bytes(b"state")
        return place.path

    def fail(self, method: str = "kd", seed: int = 0) -> Path:
        trial = self.planned(method, seed)
        place = self.folder.trial(trial.id)
        place.begin(TrialRecord.of(trial))
        place.fail(Failure(id=trial.id, stage="main", epoch=2, type="ValueError", message="no good"))
        return place.path

    def _result(self, identifier: str, top1: float) -> dict[str, Any]:
        return {
            "id": identifier, "status": Status.DONE, "epoch": 10, "metrics": {"top1": top1, "nll": 0.3},
            "cost": {"seconds": 8.5, "teacher_seconds": 1.5, "extra_epochs": 0},
            "data": {"name": "digits", "fingerprint": "f00d"},
            "environment": {"device": "cpu", "torch": self.torch_version, "platform": "Linux"},
            "finished": f"2026-01-{self.day:02}T00:01:00+00:00",
        }  # fmt: skip

    @property
    def plan(self) -> Plan:
        tables = {
            "name": self.folder.path.name,
            "question": "Which loss?",
            "data": {"name": "digits"},
            "recipe": self.recipe.model_dump(),
            "pairs": [{"teacher": "big", "student": "resnet8"}],
            "methods": [{"name": name} for name in dict.fromkeys(trial.method for trial in self.trials)],
            "seeds": list(dict.fromkeys(trial.seed for trial in self.trials)),
        }
        trials = {trial.id: trial for trial in self.trials}
        ordered = sorted(
            trials.values(), key=lambda t: ([m["name"] for m in tables["methods"]].index(t.method), t.seed)
        )
        return Plan(Suite.model_validate(tables), tuple(ordered))

    def write_plan(self, **changes: Any) -> PlanRecord:
        record = PlanRecord.of(self.plan, f"{self.folder.path.name}.toml")
        given = {"report": self.folder.path.name, "updated": f"2026-01-{self.day:02}T01:00:00+00:00"}
        record = record.model_copy(update=given | changes)
        self.folder.write_plan(record)
        return record


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., Lab]:
    """``lab("one")``: the results folder ``one``, empty."""
    return lambda name, **options: Lab(tmp_path / name, **options)


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of the last change of each file, but locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and CLAIMS not in path.parts]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def files() -> Callable[[Path], dict[str, tuple[bytes, int]]]:
    return tree


def finish_again(folder: TrialFolder, **changes: Any) -> None:
    """Write a result with other fields, and correct checksums."""
    result = folder.recorded
    assert result is not None
    folder.finish(**{name: getattr(result, name) for name in result.model_fields_set} | changes)


@pytest.fixture
def again() -> Callable[..., None]:
    return finish_again
