from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdbench.recipe import Recipe
from kdbench.results import (
    EpochRecord,
    Failure,
    PlanRecord,
    SuiteFolder,
    TeacherRecord,
    TeacherUsed,
    TrialRecord,
    write_correct,
)
from kdbench.status import Status
from kdbench.suite.plan import Origin, Plan, TeacherPlan, Trial
from kdbench.suite.schema import Suite

ENVIRONMENT = {
    "kdbench": "0.1.0", "torch": "2.11.0", "python": "3.12.1", "device": "cpu", "platform": "Linux x86_64",
    "git_commit": "0123abc",
}  # fmt: skip
SHA = "a" * 64
RECIPE = {
    "epochs": 3, "batch_size": 64, "lr": 0.05, "drops": [2], "augmentation": [{"name": "shift", "pixels": 1}],
}  # fmt: skip
DATA = {
    "fingerprint": "f00d", "corrupt": 0, "classes": 10, "image_shape": [1, 8, 8], "mean": [0.5], "std": [0.5],
    "n_train": 100, "n_test": 50,
}  # fmt: skip


class Runs:
    """Writes a results folder through the records and folders by which the engine does."""

    def __init__(self, output: Path, suite: str, data: str = "digits", **recipe: Any) -> None:
        self.folder = SuiteFolder(output, suite)
        self.data = data
        self.recipe = Recipe.model_validate({**RECIPE, **recipe})
        self.trials: list[Trial] = []
        self.teachers: dict[str, tuple[TeacherPlan, TeacherUsed]] = {}
        self.tables: dict[str, Any] = {}
        """Further keys of the suite's file: ``teachers``, ``question``."""
        self.suite = suite

    def teacher(
        self, name: str, top1: float, sha256: str = SHA, *, epochs: int = 3, seconds: float = 30.0, seed: int = 0
    ) -> None:
        """Trials that are written from here on have this teacher, if its name is theirs."""
        recipe = self.recipe.model_copy(update={"epochs": epochs}).resolved()
        plan = TeacherPlan(name, name, {"name": self.data}, recipe, None, None, seed)
        folder = self.folder.teacher(plan.key)
        folder.begin(TeacherRecord.of(plan))
        folder.finish(**self._result(plan.key, top1, cost={"seconds": seconds}), sha256=sha256)
        self.teachers[name] = plan, TeacherUsed(key=plan.key, sha256=sha256, top1=top1, seconds=seconds, seed=seed)

    def plan_trial(
        self, teacher: str, student: str, label: str, seed: int, *, method: str = "", status: Status = Status.PENDING,
        reason: str = "",
    ) -> Trial:  # fmt: skip
        trial = Trial(
            suite=self.suite, data={"name": self.data}, teacher=self.teachers[teacher][0], student=student,
            method=method or label, label=label, seed=seed, settings={"weight": 1.0}, recipe=self.recipe,
            origin=Origin("kdbench", "0.1.0", "0.1.0"), status=Status(status), reason=reason,
        )  # fmt: skip
        self.trials.append(trial)
        return trial

    def done(
        self, teacher: str, student: str, label: str, seed: int, top1: float, *, method: str = "",
        curve: Sequence[float] = (), stages: Sequence[str] = (), sha256: str = "", terms: Sequence[str] = ("ce",),
        correct: NDArray[np.bool_] | None = None, weights: bytes | None = None, **changes: Any,
    ) -> Trial:  # fmt: skip
        """``curve``: top-1 by epoch; ``stages``: the first stages, of two epochs each; ``correct``: of each test image,
        with ``top1`` as its mean; ``weights``: the content of that file, by
        default another one for each trial."""
        trial = self.plan_trial(teacher, student, label, seed, method=method)
        folder = self.folder.trial(trial.id)
        folder.begin(TrialRecord.of(trial))
        curve = curve or [top1 - 20, top1 - 5, top1]
        for stage in stages:
            for epoch in (1, 2):
                folder.append_epoch(self._epoch(epoch, stage, [stage]))
        for epoch, value in enumerate(curve, 1):
            measured = {"top1": value, "nll": 1.0, "ece": 0.05, "agreement": value - 1, "kl_to_teacher": 0.2}
            folder.append_epoch(self._epoch(epoch, "main", terms).model_copy(update={"metrics": measured}))
        used = self.teachers[teacher][1]
        cost = {"seconds": 10.0 + seed, "teacher_seconds": 1.0, **changes.pop("cost", {})}
        fields = self._result(trial.id, top1, cost=cost) | {
            "best_on_test": {"epoch": 2, "top1": max(value for value in (top1, *curve) if value == value)},
            "teacher": used.model_copy(update={"sha256": sha256 or used.sha256}),
            "finished": f"2025-01-01T00:0{seed}:00+00:00",
        }  # fmt: skip
        folder.weights.write_bytes(trial.id.encode() if weights is None else weights)
        if correct is not None:
            write_correct(folder.correct, correct)
            fields["data"] |= {"n_test": len(correct)}
        fields["metrics"] |= {"agreement": top1 - 1, "kl_to_teacher": 0.2, **changes.pop("metrics", {})}
        fields |= changes
        if fields["status"] is Status.DIVERGED:
            fields["metrics"] = {}
        folder.finish(**fields)
        return trial

    def _epoch(self, epoch: int, stage: str, terms: Sequence[str]) -> EpochRecord:
        values = {name: (index + 1) / epoch for index, name in enumerate(terms)}
        return EpochRecord(epoch=epoch, stage=stage, lr=0.05, train_loss=2.0 / epoch, terms=values, seconds=1.0)

    def _result(self, identifier: str, top1: float, *, cost: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": identifier, "status": Status.DONE, "stage": "main", "epoch": 3, "selection": self.recipe.selection,
            "metrics": {"top1": top1, "top5": min(100.0, top1 + 4), "nll": 1.0 - top1 / 200, "ece": 0.05},
            "best_on_test": {"epoch": 3, "top1": top1},
            "cost": {
                "seconds_per_step": 0.004, "images_per_second": 5e3, "teacher_seconds": 0.0,
                "peak_memory_bytes": None, "student_parameters": 1000, "trained_parameters": 1000,
                "adapter_parameters": 0, "extra_epochs": 0, **cost,
            },
            "data": {"name": self.data, **DATA}, "environment": {**ENVIRONMENT, "precision": "float32"},
            "started": "2025-01-01T00:00:00+00:00", "finished": "2025-01-01T00:00:00+00:00",
        }  # fmt: skip

    def diverged(self, teacher: str, student: str, label: str, seed: int, epoch: int, **keys: Any) -> None:
        keys = {"status": Status.DIVERGED, "epoch": epoch, "curve": [10.0], **keys}
        self.done(teacher, student, label, seed, float("nan"), **keys)

    def failed(self, teacher: str, student: str, label: str, seed: int, message: str, method: str = "") -> None:
        trial = self.plan_trial(teacher, student, label, seed, method=method)
        folder = self.folder.trial(trial.id)
        folder.begin(TrialRecord.of(trial))
        folder.fail(
            Failure(
                id=trial.id, stage="main", epoch=2, type="RuntimeError", message=message,
                why=f"RuntimeError: {message}", when="2025-01-01T00:00:00+00:00",
            )
        )  # fmt: skip

    @property
    def plan(self) -> Plan:
        """The plan of all trials so far."""
        labels = {trial.label: trial.method for trial in self.trials}
        pairs = dict.fromkeys((trial.teacher.name, trial.student) for trial in self.trials)
        suite = {
            "name": self.suite, "question": "Which loss helps most?", "cost": "3 minutes",
            "data": {"name": self.data}, "recipe": self.recipe.model_dump(),
            "pairs": [{"teacher": teacher, "student": student} for teacher, student in pairs],
            "methods": [{"name": m, **({} if m == label else {"label": label})} for label, m in labels.items()],
            "seeds": sorted({trial.seed for trial in self.trials}), **self.tables,
        }  # fmt: skip
        return Plan(Suite.model_validate(suite), tuple(self.trials))

    @property
    def record(self) -> PlanRecord:
        """What a report reads of the plan."""
        return PlanRecord.of(self.plan, f"suites/{self.suite}.toml")

    def write(self, **changes: Any) -> SuiteFolder:
        """Write ``plan.json``; the folder."""
        updated = {"environment": ENVIRONMENT, "updated": "2025-01-01T01:00:00+00:00"}
        self.folder.write_plan(self.record.model_copy(update=updated | changes))
        return self.folder


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Runs]:
    """Makes a :class:`Runs` for a suite's name."""
    return lambda suite="digits", **recipe: Runs(tmp_path / "runs", suite, **recipe)


@pytest.fixture(scope="session")
def module_runs() -> Callable[..., Runs]:
    """The same for fixtures of a wider scope: takes the folder too."""
    return lambda folder, suite="digits": Runs(folder / "runs", suite)


NONE = (70.0, 71.0, 72.0)
KD = (72.0, 72.5, 73.5)
VID = (72.1, 72.3, 73.9)
RKD = (69.0, 71.5, 72.5)


def write_study(suite: Runs) -> SuiteFolder:
    """One pair with every kind of outcome, and a second one that has just begun.

    resnet20:resnet8, seeds 0 to 2: none, kd, vid and rkd are done with the numbers above; pkt diverged at
    seed 1 (75 and 76 otherwise); ab is skipped; ft failed at seed 2 (71 and 72); deit waits at seed 2.
    resnet20:resnet14: none and kd at seed 0 only.
    """
    suite.teacher("resnet20", 80.0)
    for label, values in (("none", NONE), ("kd", KD), ("vid", VID), ("rkd", RKD)):
        for seed, top1 in enumerate(values):
            suite.done("resnet20", "resnet8", label, seed, top1)
    suite.done("resnet20", "resnet8", "pkt", 0, 75.0)
    suite.diverged("resnet20", "resnet8", "pkt", 1, epoch=1)
    suite.done("resnet20", "resnet8", "pkt", 2, 76.0)
    for seed in range(3):
        reason = "ab needs pre-activation taps; resnet8 has none"
        suite.plan_trial("resnet20", "resnet8", "ab", seed, status=Status.SKIPPED, reason=reason)
    suite.done("resnet20", "resnet8", "ft", 0, 71.0)
    suite.done("resnet20", "resnet8", "ft", 1, 72.0)
    suite.failed("resnet20", "resnet8", "ft", 2, "out of memory | twice")
    suite.done("resnet20", "resnet8", "deit", 0, 70.5)
    suite.done("resnet20", "resnet8", "deit", 1, 71.5)
    suite.plan_trial("resnet20", "resnet8", "deit", 2)
    for label, top1 in (("none", 75.0), ("kd", 76.0)):
        suite.done("resnet20", "resnet14", label, 0, top1)
        for seed in (1, 2):
            suite.plan_trial("resnet20", "resnet14", label, seed)
    return suite.write()


@pytest.fixture
def study(tmp_path: Path) -> SuiteFolder:
    """:func:`write_study`, freshly written."""
    return write_study(Runs(tmp_path / "runs", "digits"))


@pytest.fixture(scope="session")
def untouched_study(tmp_path_factory: pytest.TempPathFactory) -> SuiteFolder:
    """:func:`write_study`, shared by the tests that only read it."""
    return write_study(Runs(tmp_path_factory.mktemp("study") / "runs", "digits"))
