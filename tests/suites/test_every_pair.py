"""Every pair of the CIFAR-100 study learns with every method: the engine itself, on a few generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.data.base import Arrays, Split
from kdbench.data.feed import Feed
from kdbench.data.open import open_feed
from kdbench.engine.cohort import Lockstep
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.engine.teacher import build_seeded
from kdbench.method import DataSignature
from kdbench.models.base import signature
from kdbench.parts import Parts
from kdbench.resolve import Resolver
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
from kdbench.run import Opened, open_suite
from kdbench.status import Status
from kdbench.suite.plan import Trial

CPU = torch.device("cpu")
MADE_WITH = {"data": DataUsed(name="pairs", fingerprint="f"), "environment": Environment(device="cpu")}
STEPS, BATCH = 2, 4
PAIRS = (
    "wrn_40_2:wrn_16_2",
    "wrn_40_2:wrn_40_1",
    "resnet56:resnet20",
    "resnet110:resnet20",
    "resnet110:resnet32",
    "resnet32x4:resnet8x4",
    "vgg13:vgg8",
    "vgg13:MobileNetV2",
    "ResNet50:MobileNetV2",
    "ResNet50:vgg8",
    "resnet32x4:ShuffleNetV1",
    "resnet32x4:ShuffleNetV2",
    "wrn_40_2:ShuffleNetV1",
)
SHORTENED = (
    "seeds=[0]",
    "recipe.epochs=1",
    "recipe.drops=[]",
    f"recipe.batch_size={BATCH}",
    "methods.ab.boundary_epochs=1",
    "methods.ft.paraphraser_epochs=1",
)


@pytest.fixture(scope="module")
def study() -> Opened:
    return open_suite("cifar100", overrides=SHORTENED)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """Noise in CIFAR-100's form: 32x32 pixels, classes 0 to 99."""
    stream = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = stream.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        return Split(images, stream.permutation(100)[:count].astype(np.int64))

    return Arrays(split(STEPS * BATCH), split(2), "generated")


@pytest.fixture(scope="module")
def feed(study: Opened, arrays: Arrays) -> Feed:
    recipe = study.suite.recipe
    return open_feed(
        arrays,
        study.resolver.facts,
        augmentation=Parts.of(recipe).steps,
        batch_size=recipe.batch_size,
        seed=0,
        device=CPU,
    )


def teacher_of(resolver: Resolver, trial: Trial, feed: Feed) -> FrozenTeacher:
    network = build_seeded(lambda: resolver.network(trial.teacher.model), 0, "teacher", trial.teacher.model)
    known = signature(network, trial.teacher.model, (3, 32, 32))
    # What a fresh network's normalisations hold fits no image: in evaluation, the deep ones' maps would explode.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train().requires_grad_(False)
    network(next(feed.epoch("statistics", 0)).images)
    network.eval()
    return FrozenTeacher(network, known, TeacherUsed(key="", sha256="", top1=1.0, seconds=0.0))


def learner_of(
    study: Opened, trial: Trial, teacher: FrozenTeacher, feed: Feed, folder: Path, idle: nn.Parameter | None = None
) -> Learner:
    network = build_seeded(lambda: study.resolver.network(trial.student), 0, "student", trial.student)
    network.register_parameter("idle", idle)
    known = signature(network, trial.student, (3, 32, 32))
    method = study.resolver.method(trial)
    method.setup(known, teacher.signature, DataSignature(100, feed.n_train))
    place = TrialFolder(folder / trial.label)
    place.begin(TrialRecord.of(trial))
    return Learner(
        identifier=trial.label,
        network=network,
        student=known,
        teacher=teacher.signature,
        method=method,
        recipe=trial.recipe,
        seed=0,
        folder=place,
        device=CPU,
        steps_per_epoch=feed.steps_per_epoch,
    )


class Inspector:
    """Looks at learners at the end of each stage's one epoch, before they go on."""

    def __init__(self, learners: list[Learner]) -> None:
        self.learners = {learner.id: learner for learner in learners}
        self.stages: dict[str, list[str]] = {learner.id: [] for learner in learners}
        self.errors: dict[str, str] = {}
        self.finished_ones: dict[str, TrialResult] = {}

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        learner = self.learners[identifier]
        self.stages[identifier].append(record.stage)
        assert np.isfinite(record.train_loss), (identifier, record)
        trained = {id(p) for group in learner.trainer.optimizer.param_groups for p in group["params"]}
        names = {id(p): name for name, p in learner.trainer.modules.named_parameters()}
        student = {id(p) for p in learner.student.network.parameters()}
        if learner.trainer.in_main:
            assert student <= trained, identifier
        elif learner.trainer.phase.uses_student:
            head = {
                id(p)
                for part in learner.student.network.head
                for p in learner.student.network.get_submodule(part).parameters()
            }
            assert student & trained == student - head, identifier
        for group in learner.trainer.optimizer.param_groups:
            for parameter in group["params"]:
                where = f"{identifier}, {record.stage}: {names[id(parameter)]}"
                if learner.trainer.in_main and "method.connectors." in where:
                    continue  # they served the boundary stage
                assert parameter.grad is not None, where
                assert parameter.grad.isfinite().all(), where
                # What a batch normalisation cancels, and what is behind a dead unit, may get none at all.
                assert parameter.ndim == 1 or parameter.grad.any(), where

    def finished(self, identifier: str, result: TrialResult) -> None:
        self.finished_ones[identifier] = result

    def failed(self, identifier: str, error: Failure) -> None:
        self.errors[identifier] = error.traceback


def test_these_are_all_pairs(study: Opened) -> None:
    assert {trial.pair for trial in study.plan.trials} == set(PAIRS)


@pytest.mark.parametrize("pair", PAIRS)
def test_two_steps_with_every_method(study: Opened, feed: Feed, tmp_path: Path, pair: str) -> None:
    trials = [trial for trial in study.plan.trials if trial.pair == pair]
    assert [trial.label for trial in trials] == ["none", "kd", "vid", "rkd", "pkt", "ab", "ft", "deit"]
    teacher = teacher_of(study.resolver, trials[0], feed)
    learners = [learner_of(study, trial, teacher, feed, tmp_path) for trial in trials]
    before = {learner.id: [p.detach().clone() for p in learner.student.network.parameters()] for learner in learners}
    inspector = Inspector(learners)
    assert feed.steps_per_epoch == STEPS
    Lockstep(learners, feed, teacher, inspector, **MADE_WITH, checkpoint_every=9).run()
    assert inspector.errors == {}
    first = {"ab": ["boundary"], "ft": ["paraphraser"]}
    assert inspector.stages == {trial.label: [*first.get(trial.label, []), "main"] for trial in trials}
    assert {name: result.status for name, result in inspector.finished_ones.items()} == {
        trial.label: Status.DONE for trial in trials
    }
    for learner in learners:
        moved = [
            not torch.equal(a, b) for a, b in zip(before[learner.id], learner.student.network.parameters(), strict=True)
        ]
        assert all(moved), learner.id


def test_the_inspection_can_fail(study: Opened, feed: Feed, tmp_path: Path) -> None:
    trial = next(trial for trial in study.plan.trials if trial.pair == "resnet56:resnet20" and trial.label == "kd")
    teacher = teacher_of(study.resolver, trial, feed)
    learner = learner_of(study, trial, teacher, feed, tmp_path, idle=nn.Parameter(torch.zeros(2, 2)))
    inspector = Inspector([learner])
    Lockstep([learner], feed, teacher, inspector, **MADE_WITH, checkpoint_every=9).run()
    assert "AssertionError: kd, main: network.idle" in inspector.errors["kd"]
