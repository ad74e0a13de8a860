from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdbench.results import SuiteFolder

ENVIRONMENT = {
    "kdbench": "0.1.0", "torch": "2.11.0", "python": "3.12.1", "device": "cpu", "platform": "Linux x86_64",
    "git_commit": "0123abc", "precision": "float32",
}  # fmt: skip
SHA = "a" * 64
RECIPE = {
    "epochs": 3, "batch_size": 64, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": False,
    "weight_decay": 5e-4, "schedule": "steps", "drops": [2], "drop_factor": 0.1, "warmup_epochs": 0, "min_lr": 0.0,
    "label_smoothing": 0.0, "clip_grad_norm": None, "ema_decay": None, "drop_path": 0.0,
    "augmentation": [{"name": "shift", "pixels": 1}], "precision": "auto", "selection": "last",
}  # fmt: skip


class Runs:
    """Writes a results folder by hand, file by file."""

    def __init__(self, output: Path, suite: str, data: str = "digits", **recipe: Any) -> None:
        self.folder = SuiteFolder(output, suite)
        self.data, self.recipe = data, {**RECIPE, **recipe}
        self.trials: list[dict[str, Any]] = []
        self.teachers: dict[str, dict[str, Any]] = {}
        self.suite = suite

    def teacher(self, name: str, top1: float, sha256: str = SHA) -> None:
        key = f"key{name}"
        self.teachers[name] = {"name": name, "key": key, "model": name, "top1": top1, "sha256": sha256}
        self._write(
            self.folder.output / "_teachers" / key / "result.json",
            {"status": "done", "top1": top1, "sha256": sha256, "seconds": 30.0, "epochs": 3},
        )

    def plan_trial(
        self, teacher: str, student: str, label: str, seed: int, *, method: str = "", status: str = "pending",
        reason: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        row = {
            "id": f"{teacher}-{student}-{label}-seed{seed}".replace("/", "_").replace(":", "_"),
            "teacher": teacher, "student": student, "method": method or label, "label": label, "seed": seed,
            "status": status, "reason": reason,
        }  # fmt: skip
        self.trials.append(row)
        return row

    def done(
        self, teacher: str, student: str, label: str, seed: int, top1: float, *, method: str = "",
        curve: Sequence[float] = (), sha256: str = "", status: str = "done", epoch: int = 3, **changes: Any,
    ) -> dict[str, Any]:  # fmt: skip
        row = self.plan_trial(teacher, student, label, seed, method=method)
        folder = self.folder.path / row["id"]
        known = self.teachers[teacher]
        self._write(
            folder / "trial.json",
            {
                **row, "protocol": 2, "suite": self.suite, "teacher_key": known["key"], "settings": {"weight": 1.0},
                "recipe": self.recipe, "data": {"name": self.data},
                "plugin": {"distribution": "kdbench", "version": "0.1.0"},
            },
        )  # fmt: skip
        curve = curve or [top1 - 20, top1 - 5, top1]
        records = [
            {
                "epoch": i + 1, "stage": "main", "lr": 0.05, "train_loss": 2.0 / (i + 1),
                "terms": {"ce": 1.0 / (i + 1)},
                "seconds": 1.0, "top1": value, "nll": 1.0, "ece": 0.05, "agreement": value - 1, "kl_to_teacher": 0.2,
            }
            for i, value in enumerate(curve)
        ]  # fmt: skip
        folder.joinpath("epochs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        result = {
            "id": row["id"], "status": status, "epoch": epoch, "selection": "last",
            "top1": top1, "top5": min(100.0, top1 + 4), "nll": 1.0 - top1 / 200, "ece": 0.05,
            "agreement": top1 - 1, "kl_to_teacher": 0.2,
            "best_on_test": {"epoch": 2, "top1": max([top1, *curve])},
            "teacher": {
                "key": known["key"], "sha256": sha256 or known["sha256"], "top1": known["top1"], "seconds": 30.0,
            },
            "cost": {
                "seconds": 10.0 + seed, "teacher_seconds": 1.0, "seconds_per_step": 0.004, "images_per_second": 5e3,
                "peak_memory_bytes": None, "student_parameters": 1000, "trained_parameters": 1000,
                "adapter_parameters": 0, "extra_epochs": 0, **changes.pop("cost", {}),
            },
            "data": {"name": self.data, "fingerprint": "f00d", "corrupt": 0}, "environment": ENVIRONMENT,
            "started": "2025-01-01T00:00:00+00:00", "finished": f"2025-01-01T00:0{seed}:00+00:00", **changes,
        }  # fmt: skip
        self._write(folder / "result.json", result)
        folder.joinpath("student.safetensors").write_bytes(b"")
        return row

    def diverged(self, teacher: str, student: str, label: str, seed: int, epoch: int, **keys: Any) -> None:
        self.done(teacher, student, label, seed, float("nan"), status="diverged", epoch=epoch, curve=[10.0], **keys)

    def failed(self, teacher: str, student: str, label: str, seed: int, message: str, method: str = "") -> None:
        row = self.plan_trial(teacher, student, label, seed, method=method)
        self._write(self.folder.path / row["id"] / "trial.json", {**row, "teacher_key": "", "settings": {}})
        self._write(
            self.folder.path / row["id"] / "error.json",
            {
                "id": row["id"], "status": "failed", "stage": "main", "epoch": 2, "type": "RuntimeError",
                "message": message, "traceback": "", "when": "2025-01-01T00:00:00+00:00",
            },
        )  # fmt: skip

    def write(self, **changes: Any) -> SuiteFolder:
        """Write ``plan.json``; the folder."""
        labels = {row["label"]: row["method"] for row in self.trials}
        pairs = dict.fromkeys((row["teacher"], row["student"]) for row in self.trials)
        self._write(
            self.folder.path / "plan.json",
            {
                "protocol": 2,
                "path": f"suites/{self.suite}.toml",
                "suite": {
                    "name": self.suite, "question": "Which loss helps most?", "cost": "3 minutes",
                    "data": {"name": self.data, "train_limit": None, "test_limit": None, "validation": 0},
                    "recipe": self.recipe,
                    "pairs": [{"teacher": t, "student": s, "recipe": {}, "methods": {}} for t, s in pairs],
                    "methods": [{"name": m, "label": "" if m == label else label} for label, m in labels.items()],
                    "seeds": sorted({row["seed"] for row in self.trials}), "teachers": {}, "plugins": [],
                    "checkpoint_every": 10,
                },
                "trials": self.trials,
                "teachers": [{k: t[k] for k in ("name", "key", "model")} for t in self.teachers.values()],
                "environment": ENVIRONMENT, "updated": "2025-01-01T01:00:00+00:00", **changes,
            },
        )  # fmt: skip
        return self.folder

    @staticmethod
    def _write(path: Path, content: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Runs]:
    """Makes a :class:`Runs` for a suite's name."""
    return lambda suite="digits", **recipe: Runs(tmp_path / "runs", suite, **recipe)


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
        suite.plan_trial(
            "resnet20", "resnet8", "ab", seed, status="skipped", reason="ab needs pre-activation taps; resnet8 has none"
        )
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
