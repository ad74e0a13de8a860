"""A finished suite with every kind of student, trained for one epoch on a few digits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from kdbench.data.digits import Digits
from kdbench.data.splits import limit
from kdbench.export import Exported, export_trial, load_student
from kdbench.results import TrialFolder
from kdbench.run import run_suite
from kdbench.status import Status

SUITE = """
name = "small"
question = "Does it export?"
seeds = [0]
plugins = ["halves.py"]

[data]
name = "digits"
train_limit = 96
test_limit = 50
validation = 30

[recipe]
epochs = 1
selection = "validation"
label_smoothing = 0.1

[[pairs]]
teacher = "resnet14"
student = "resnet8"

[[pairs]]
teacher = "resnet14"
student = "deit_micro"

[[methods]]
name = "vid"

[[methods]]
name = "deit"

[[methods]]
name = "combine"
label = "both"
methods = [{ name = "deit/soft" }, { name = "kd" }]

[[methods]]
name = "halves"

[[methods]]
name = "explodes"
"""

PLUGIN = '''
"""A method that predicts in a way of its own, and one that diverges."""

import torch

from kdbench.method import Method


class Halves(Method):
    name = "halves"

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}

    def predict(self, student):
        return student.logits / 2


class Explodes(Method):
    name = "explodes"

    def forward(self, student, teacher, batch):
        return {"ce": (student.logits.sum() * torch.inf, 1.0)}
'''


@dataclass(frozen=True)
class Trained:
    """The suite's file and plugin, its results folder, and its trials' folders by ``student label``."""

    suite: Path
    plugin: Path
    output: Path
    trials: dict[str, TrialFolder]

    def path(self, name: str) -> Path:
        return self.trials[name].path


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("export")
    suite, plugin, output = folder / "small.toml", folder / "halves.py", folder / "runs"
    suite.write_text(SUITE)
    plugin.write_text(PLUGIN)
    results = run_suite(suite, output=output, report_dir=folder / "reports", device="cpu", observers=[])
    trials = {
        f"{trial.student} {trial.label}": results.folder.trial(trial.id)
        for trial in results.plan.trials
        if trial.status is not Status.SKIPPED
    }
    return Trained(suite, plugin, output, trials)


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Callable[[str, str], Exported]:
    """``exported("resnet8 deit", "onnx")``: what ``export_trial`` wrote, each student and form once."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export(name: str, form: str) -> Exported:
        return export_trial(trained.path(name), form, folder)

    return export


@pytest.fixture(scope="session")
def test_images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The suite's test images in 0..1, as the data set has them, and their classes."""
    arrays = limit(Digits().load(), train_limit=96, test_limit=50, validation=30)
    return arrays.test.images.astype(np.float32) / 255, arrays.test.labels


Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@pytest.fixture
def predict(trained) -> Callable[[Path], Predict]:
    """How a user gets logits from an exported file."""

    def of(file: Path) -> Predict:
        if file.suffix == ".onnx":
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            return lambda images: session.run(["logits"], {"images": images})[0]
        student = load_student(file, plugins=[trained.plugin])
        return lambda images: student(torch.from_numpy(images)).numpy()

    return of
