"""What is measured, built as in a run: a frozen teacher, learners, a feed of random images, and the lockstep."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.bench.timing import synchronize
from kdbench.data.base import Arrays, DataFacts, Split
from kdbench.data.feed import EvaluationSplit, Feed, Minibatch
from kdbench.data.open import open_feed
from kdbench.discovery import Registry
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.engine.cohort import Interrupted, Lockstep
from kdbench.engine.fold import folded
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.graphs.replayed import WARM_UP
from kdbench.engine.learner import Learner
from kdbench.engine.teacher import build_seeded
from kdbench.errors import TrialError
from kdbench.method import DataSignature, set_up
from kdbench.models.base import TappedModel, from_offer, signature
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.results import (
    AnyFolder,
    DataUsed,
    Environment,
    EpochRecord,
    Failure,
    TeacherResult,
    TeacherUsed,
    TrialFolder,
    TrialResult,
)
from kdbench.seeding import derive
from kdbench.suite.schema import Engine
from kdbench.testing.subject import Examinee

STEPS_PER_EPOCH = 10_000
"""More than are measured: an epoch never ends, so that nothing is evaluated or saved."""


@dataclass(frozen=True)
class Variant:
    """A way to run the engine that is measured beside others, with the options that it needs."""

    name: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Of :class:`Recipe`."""
    learner: Mapping[str, Any] = field(default_factory=dict)
    """Of :class:`Learner`."""
    lockstep: Mapping[str, Any] = field(default_factory=dict)
    """Of :class:`Lockstep`."""
    warm_up: int = 3
    """Steps before the first one that counts; on a CPU one is enough."""


VARIANTS = (
    Variant("eager"),
    # Not on a CPU: a tape shows that replays are right, not how fast they are. Before the first step that counts, some
    # are executed, one is recorded, as is a pass of the teacher, and one is replayed.
    Variant("graphs", ("cuda",), lockstep={"engine": Engine(graphs="auto")}, warm_up=WARM_UP + 2),
)


@dataclass
class World:
    """Random images of one size on a device, and the networks and methods of a registry for them."""

    registry: Registry
    device: torch.device
    folder: Path
    """A temporary one, for what failing learners write."""
    image_shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 100
    n_train: int = 4096

    @cached_property
    def facts(self) -> DataFacts:
        """The facts of the random images."""
        channels = self.image_shape[0]
        return DataFacts(self.classes, self.image_shape, self.n_train, 1, (0.5,) * channels, (0.25,) * channels)

    @cached_property
    def arrays(self) -> Arrays:
        """The random images, in which all classes occur."""
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (self.n_train, *self.image_shape), np.uint8)
        labels = (np.arange(self.n_train) % self.classes).astype(np.int64)
        return Arrays(Split(images, labels), Split(images[:1], labels[:1]), "random")

    def feed(self, recipe: Recipe) -> Feed:
        """The feed of a recipe: its augmentation, and its batch size."""
        return open_feed(
            self.arrays,
            self.facts,
            augmentation=Parts.of(recipe, self.registry).steps,
            batch_size=recipe.batch_size,
            seed=0,
            device=self.device,
        )

    def batch(self, recipe: Recipe) -> Minibatch:
        """One batch of the feed."""
        return next(iter(self.feed(recipe).epoch("main", 0)))

    def network(self, name: str, *purpose: object, **settings: Any) -> TappedModel:
        """A network with random weights, on the CPU. ``settings`` are those of its builder."""
        offer = self.registry.model(name)
        return build_seeded(
            lambda: from_offer(offer, classes=self.classes, image_shape=self.image_shape, **settings),
            0,
            name,
            *purpose,
        )

    def teacher(self, name: str, *, fold: bool = True) -> FrozenTeacher:
        """A frozen network on the device, as a run loads it. ``fold`` False keeps its batch normalisations."""
        network = self.network(name, "teacher")
        known = signature(network, name, self.image_shape)
        network.to(self.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        if fold and self.registry.model(name).provider.distribution == FIRST_PARTY:
            network = folded(network, self.image_shape)
        return FrozenTeacher(network, known, TeacherUsed(key=name, sha256="", top1=0.0, seconds=0.0), foreign=False)

    def learner(
        self,
        identifier: str,
        student: str,
        teacher: FrozenTeacher,
        method: str,
        recipe: Recipe,
        *,
        settings: Mapping[str, Any] | None = None,
        variant: Variant = VARIANTS[0],
        folder: AnyFolder | None = None,
        steps_per_epoch: int = STEPS_PER_EPOCH,
        main_only: bool = True,
    ) -> Learner:
        """A student and its method, by default at the beginning of the main stage, without the stages before it.

        Raises :class:`~kdbench.errors.Incompatible` if the method cannot read the networks.
        """
        extra = {"drop_path": recipe.drop_path} if recipe.drop_path else {}
        network = self.network(student, "student", identifier, **extra)
        known = signature(network, student, self.image_shape)
        examinee = Examinee.of(self.registry.method(method), settings or {})
        data = DataSignature(self.classes, self.n_train, torch.from_numpy(self.arrays.train.labels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "adapters", identifier))
            built = examinee.build()
            set_up(built, known, teacher.signature, data)
        recipe = recipe.model_copy(update=dict(variant.recipe))
        learner = Learner(
            identifier=identifier,
            network=network,
            student=known,
            teacher=teacher.signature,
            method=built,
            recipe=recipe,
            seed=0,
            folder=folder or TrialFolder(self.folder / identifier.replace("/", "-")),
            device=self.device,
            steps_per_epoch=steps_per_epoch,
            stream=identifier,
            foreign=(),
            parts=Parts.of(recipe, self.registry),
            **variant.learner,
        )
        while main_only and not learner.trainer.in_main:
            learner.trainer.leave()
        return learner


class PacedFeed:
    """A feed of the images of another one for as many steps as asked for; takes the time from the first that counts.

    The lockstep asks whether it is overdue before each batch. At the first question after the last step all steps are
    done, and the lockstep is stopped there.
    """

    steps_per_epoch = STEPS_PER_EPOCH
    n_evaluate = 1

    def __init__(self, batches: Callable[[], Iterator[Minibatch]], n_train: int, device: torch.device) -> None:
        self.n_train = n_train
        self.seconds = 0.0
        """Of the steps that count, after :meth:`overdue` was true."""
        self._batches = batches
        self._source: Iterator[Minibatch] = iter(())
        self._device = device
        self._start = 0.0
        self._left = 0
        self._uncounted = 0

    def arm(self, uncounted: int, counted: int) -> None:
        """Prepare for so many steps."""
        self._uncounted, self._left = uncounted, uncounted + counted

    def epoch(self, stage: str, epoch: int) -> Iterator[Minibatch]:
        """The batches of the next steps. It takes up the epoch where the last steps ended."""
        while True:
            if self._uncounted == 0:
                synchronize(self._device)
                self._start = time.perf_counter()
            self._uncounted -= 1
            self._left -= 1
            yield self._next()

    def overdue(self) -> bool:
        """Whether all steps are done."""
        if self._left > 0:
            return False
        synchronize(self._device)
        self.seconds = time.perf_counter() - self._start
        return True

    def evaluate(
        self, split: EvaluationSplit = "test", batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Nothing: no epoch ends."""
        return iter(())

    def _next(self) -> Minibatch:
        batch = next(self._source, None)
        if batch is None:
            self._source = self._batches()
            batch = next(self._source)
        return batch


class _Failures:
    """A listener that keeps failures."""

    def __init__(self) -> None:
        self.found: list[Failure] = []

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        """No epoch ends."""

    def finished(self, identifier: str, result: TrialResult | TeacherResult) -> None:
        """No learner finishes."""

    def failed(self, identifier: str, error: Failure) -> None:
        self.found.append(error)


class Cohort:
    """Learners in the engine's lockstep, which takes as many steps as asked for."""

    def __init__(
        self,
        world: World,
        learners: Sequence[Learner],
        teacher: FrozenTeacher,
        batches: Callable[[], Iterator[Minibatch]],
        variant: Variant = VARIANTS[0],
    ) -> None:
        self._feed = PacedFeed(batches, world.n_train, world.device)
        self._failures = _Failures()
        self._cold = variant.warm_up if world.device.type == "cuda" else 1
        self._lockstep = Lockstep(
            learners,
            self._feed,
            teacher,
            self._failures,
            data=DataUsed(name="random", fingerprint=""),
            environment=Environment(device=str(world.device)),
            checkpoint_every=1,
            # A Ctrl-C is no error of a learner: it is raised at once.
            stop=lambda: True,
            overdue=self._feed.overdue,
            **variant.lockstep,
        )

    def seconds_per_step(self, steps: int) -> float:
        """The mean of ``steps`` steps, after one that does not count (more, the first time).

        Raises :class:`~kdbench.errors.TrialError` if a learner fails.
        """
        self._feed.arm(max(1, self._cold), steps)
        self._cold = 0
        with suppress(Interrupted):
            self._lockstep.run()
        if self._failures.found:
            raise TrialError(self._failures.found[0].message)
        return self._feed.seconds / steps

    @property
    def executed(self) -> list[str]:
        """Learners whose steps could not be replayed from recordings, each with the reason."""
        reasons = {learner.id: self._lockstep.executed(learner) for learner in self._lockstep.learners}
        return [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
