"""A small real feed, learners on it, and somebody who listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdbench.data.digits import Digits
from kdbench.data.feed import Feed
from kdbench.data.open import open_feed
from kdbench.data.splits import limit, limit_facts
from kdbench.engine.cohort import Lockstep
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.engine.teacher import build_seeded
from kdbench.method import Batch, DataSignature, Method, Output, Terms
from kdbench.models.base import TappedModel, signature
from kdbench.models.resnet import resnet
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.results import (
    DataUsed,
    Environment,
    EpochRecord,
    Failure,
    TeacherUsed,
    TrialFolder,
    TrialRecord,
    TrialResult,
)
from kdbench.seeding import derive

CPU = torch.device("cpu")
LIMITS = {"train_limit": 200, "test_limit": 100, "validation": 40}


class Labels(Method):
    """Cross-entropy alone."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}


def build() -> TappedModel:
    return resnet(depth=8, classes=10, image_shape=(1, 8, 8))


class Heard:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, str, int]] = []
        self.results: dict[str, TrialResult] = {}
        self.errors: dict[str, Failure] = {}

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        self.epochs.append((identifier, record.stage, record.epoch))

    def finished(self, identifier: str, result: TrialResult) -> None:
        self.results[identifier] = result

    def failed(self, identifier: str, error: Failure) -> None:
        self.errors[identifier] = error


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="session")
def feed() -> Feed:
    digits = Digits()
    return open_feed(
        limit(digits.load(), **LIMITS),
        limit_facts(digits.facts(), **LIMITS),
        augmentation=Parts.of(Recipe(epochs=1, augmentation=("shift",))).steps,
        batch_size=48,  # 160 images: the last batch is smaller
        seed=3,
        device=CPU,
    )


@pytest.fixture(scope="session")
def teacher() -> FrozenTeacher:
    network = build_seeded(build, 0, "teacher").requires_grad_(False)
    known = signature(network, "resnet8", (1, 8, 8))
    network.eval()
    return FrozenTeacher(network, known, TeacherUsed(key="k", sha256="s", top1=50.0, seconds=1.0))


@pytest.fixture
def learner(tmp_path, feed, teacher) -> Callable[..., Learner]:
    """``learner(method, name="a", epochs=2, folder=..., foreign=..., **recipe)``: set up and ready to train."""

    def make(method: Method, name: str = "a", folder: str | None = None, seed: int = 3, **options: Any) -> Learner:
        foreign = options.pop("foreign", ("network", "method"))
        network = build_seeded(build, seed, "student")
        known = signature(network, "resnet8", (1, 8, 8))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "adapters"))
            method.setup(known, teacher.signature, DataSignature(10, feed.n_train))
        place = TrialFolder(tmp_path / (folder or name))
        place.begin(TrialRecord(id=name, teacher="t", student="s", method="m", label="m", seed=seed))
        return Learner(
            identifier=name,
            network=network,
            student=known,
            teacher=teacher.signature,
            method=method,
            recipe=Recipe(**{"epochs": 2, "lr": 0.05, **options}),
            seed=seed,
            folder=place,
            device=CPU,
            steps_per_epoch=feed.steps_per_epoch,
            foreign=foreign,
        )

    return make


@pytest.fixture(scope="session")
def made_with() -> dict[str, Any]:
    """What a cohort's results say of data and environment."""
    return {"data": DataUsed(name="digits", fingerprint="f"), "environment": Environment(device="cpu")}


@pytest.fixture
def train(feed, teacher, heard, made_with) -> Callable[..., None]:
    """``train(*learners, stop=..., checkpoint_every=1)`` in lockstep to the end."""

    def run(*learners: Learner, **options: Any) -> None:
        options = {
            "checkpoint_every": 1,
            **made_with,
            **options,
        }
        Lockstep(learners, feed, teacher, heard, **options).run()

    return run
