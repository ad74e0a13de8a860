"""Trains a method twice from the same weights and batches: by the engine, and by a plain loop; the losses must agree.

The plain loop and the losses it is given are written from the methods' references and share no code with what they
check. Only the networks are kdbench's own. A reference is a class in one of the test files:

- ``__init__(world)`` makes its adapters (see :meth:`World.adapter`);
- ``loss(s, t, batch)`` returns the main stage's terms, weighted, from the taps of student and teacher;
- ``stages()``, ``after_step(batch)`` and ``predict(s)`` where the method has them.

Everything is float64. An epoch has batches of 8, 8 and 6 images; the learning rate drops before the last epoch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.feed import Minibatch
from kdbench.discovery import Registry, discover
from kdbench.engine.cohort import Lockstep
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.method import DataSignature, Method
from kdbench.models.base import TappedModel, from_offer, signature
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

CPU = torch.device("cpu")
TOLERANCE = 1e-9
CLASSES = 5
IMAGES = 22
BATCHES = (8, 8, 6)
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4

Taps = Mapping[str, Tensor]


class SmallFeed:
    """The batches of both trainings: every image once an epoch, in an order of its own for each stage and epoch."""

    steps_per_epoch = len(BATCHES)
    n_train = IMAGES
    n_evaluate = IMAGES

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        generator = torch.Generator().manual_seed(5)
        self.images = torch.randn(IMAGES, *image_shape, dtype=torch.float64, generator=generator)
        self.labels = torch.arange(IMAGES) % CLASSES

    def epoch(self, stage: str, epoch: int) -> Iterator[Minibatch]:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(100 * len(stage) + epoch))
        for indices in order.split(BATCHES):
            yield Minibatch(self.images[indices], self.labels[indices], indices)

    def evaluate(self, split: str = "test", batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.images.flip(3), self.labels


class Silent:
    def epoch(self, identifier: str, record: EpochRecord) -> None:
        pass

    def finished(self, identifier: str, result: TrialResult) -> None:
        pass

    def failed(self, identifier: str, error: Failure) -> None:
        pytest.fail(error.traceback)


@dataclass
class Batch:
    """What a reference's losses may know of a batch. ``epoch`` counts from 0."""

    labels: Tensor
    indices: Tensor
    epoch: int

    def ce(self, s: Taps) -> Tensor:
        """Mean cross-entropy of the class head to the labels, in nats."""
        return -F.log_softmax(s["logits"], 1)[torch.arange(len(self.labels)), self.labels].mean()


@dataclass
class FirstStage:
    """A stage before the main one, as a reference describes it.

    ``trains`` is in train mode and trained, except ``frozen``, parts of it; all else is in eval mode.
    """

    epochs: int
    lr: float
    trains: Sequence[nn.Module]
    loss: Callable[[Taps, Taps, Batch], dict[str, Tensor]]
    frozen: Sequence[nn.Module] = ()


@dataclass
class World:
    """What a training starts from."""

    student: TappedModel
    teacher: TappedModel
    method: Method
    """As it was set up: initial weights of adapters are copied from it."""
    labels: Tensor
    epochs: int
    lr: float
    """The base rate. It drops to a tenth before the last epoch."""
    negatives: list[Tensor] = field(default_factory=list)
    """What the method drew of other classes, a tensor a step."""
    adapters: dict[str, nn.Module] = field(default_factory=dict)

    def adapter(self, module: nn.Module, path: str) -> Any:
        """``module`` with the initial weights of the method's submodule ``path``: equal shapes, in order."""
        given = self.method.get_submodule(path).state_dict()
        own = module.state_dict()
        assert [v.shape for v in own.values()] == [v.shape for v in given.values()], path
        module.double().load_state_dict(dict(zip(own, given.values(), strict=True)))
        self.adapters[path] = module
        return module


@dataclass
class Course:
    """A training's course: for each step (stage, weighted terms); for each epoch the rate; what it ended with."""

    steps: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    """Negative log likelihood of the test images after each main epoch."""
    state: dict[str, Tensor] = field(default_factory=dict)


class SGD:
    """v = momentum * v + gradient + weight_decay * w; w = w - lr * v."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.velocity: dict[int, Tensor] = {}

    def step(self, lr: float) -> None:
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                change = p.grad + WEIGHT_DECAY * p
                self.velocity[i] = MOMENTUM * self.velocity[i] + change if i in self.velocity else change
                p -= lr * self.velocity[i]


class AdamW:
    """Decoupled decay (Loshchilov, Hutter, ICLR 2019, algorithm 2), of ``decayed`` alone."""

    def __init__(self, parameters: Sequence[nn.Parameter], decayed: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decayed = {id(p) for p in decayed}
        self.decay = decay
        self.moments: dict[int, tuple[Tensor, Tensor]] = {}
        self.steps = 0

    def step(self, lr: float) -> None:
        self.steps += 1
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                m, v = self.moments.get(i, (torch.zeros_like(p), torch.zeros_like(p)))
                m, v = 0.9 * m + 0.1 * p.grad, 0.999 * v + 0.001 * p.grad**2
                self.moments[i] = m, v
                if id(p) in self.decayed:
                    p *= 1 - lr * self.decay
                p -= lr * (m / (1 - 0.9**self.steps)) / ((v / (1 - 0.999**self.steps)).sqrt() + 1e-8)


def train_plainly(world: World, reference: Any, feed: SmallFeed, optimizer: Any) -> Course:
    """The plain loop: first stages, each with a fresh optimiser at a constant rate, then the main stage."""
    course = Course()
    # The layout decides the order of sums. It is no part of the protocol, and deep networks amplify rounding.
    student, teacher = (net.to(memory_format=torch.channels_last) for net in (world.student, world.teacher))
    everything = [student, *world.adapters.values()]
    teacher.eval().requires_grad_(False)

    def epoch(stage: str, name: str, number: int, trained: Sequence[nn.Module], frozen, loss, step, lr) -> None:
        for module in everything:
            module.eval()
        for module in trained:
            module.train()
        for module in frozen:
            module.eval()
        for minibatch in feed.epoch(stage, number):
            for module in everything:
                module.zero_grad(set_to_none=True)
            batch = Batch(minibatch.labels, minibatch.indices, number)
            with torch.no_grad():
                t = teacher(minibatch.images, tuple(teacher.taps))
            terms = loss(student(minibatch.images, tuple(student.taps)) if student in trained else {}, t, batch)
            sum(terms.values()).backward()
            with torch.no_grad():
                step(lr)
                if stage == "main" and hasattr(reference, "after_step"):
                    reference.after_step(batch)
            course.steps.append((name, {key: value.item() for key, value in terms.items()}))
        course.rates.append(lr)

    for i, (name, stage) in enumerate(reference.stages() if hasattr(reference, "stages") else ()):
        frozen = {id(p) for module in stage.frozen for p in module.parameters()}
        parameters = [p for module in stage.trains for p in module.parameters() if id(p) not in frozen]
        step = SGD(parameters).step
        for number in range(stage.epochs):
            epoch(f"first stage {i}", name, number, stage.trains, stage.frozen, stage.loss, step, stage.lr)
    trained = [student, *(world.adapters[path] for path in getattr(reference, "trained", world.adapters))]
    step = optimizer([p for module in trained for p in module.parameters()]).step
    for number in range(world.epochs):
        lr = world.lr / 10 if 0 < number == world.epochs - 1 else world.lr
        epoch("main", "main", number, trained, (), reference.loss, step, lr)
        for module in everything:
            module.eval()
        with torch.no_grad():
            [(images, labels)] = feed.evaluate()
            s = student(images, tuple(student.taps))
            logits = reference.predict(s) if hasattr(reference, "predict") else s["logits"]
            course.nll.append(F.cross_entropy(logits, labels).item())
    course.state = {f"network.{key}": value for key, value in student.state_dict().items()}
    for path, module in world.adapters.items():
        course.state |= {f"{path}#{i}": value for i, value in enumerate(module.state_dict().values())}
    return course


def record_terms(method: Method, course: Course, world: World) -> None:
    """Write down what the engine is given, at the contract's own functions."""

    def note(name: str, terms: Mapping[str, tuple[Tensor, float | Tensor]]) -> None:
        course.steps.append((name, {key: float(value.detach() * weight) for key, (value, weight) in terms.items()}))

    stages = method.stages()

    def recorded(stage: Any) -> Any:
        def loss(*args: Any) -> Any:
            terms = stage.loss(*args)
            note(stage.name, terms)
            return terms

        return replace(stage, loss=loss)

    method.stages = lambda: [recorded(stage) for stage in stages]  # type: ignore[method-assign]
    method.register_forward_hook(lambda module, inputs, terms: note("main", terms))
    for name, module in method.named_modules():
        if name.endswith("other_classes"):
            module.register_forward_hook(lambda module, inputs, drawn: world.negatives.append(drawn.clone()))


def uneven(network: TappedModel) -> TappedModel:
    """In float64, with batch normalisations that are not the identity."""
    network.double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="session")
def registry() -> Registry:
    return discover()


@pytest.fixture
def first_stage() -> type[FirstStage]:
    """What a reference's ``stages()`` gives, behind a name."""
    return FirstStage


@pytest.fixture
def adamw() -> type[AdamW]:
    """For ``optimizer``."""
    return AdamW


@pytest.fixture
def agrees(registry: Registry, tmp_path: Path) -> Callable[..., None]:
    """``agrees(name, reference, ..)``: with the options of ``check`` below and the method's settings."""

    def check(
        name: str,
        reference: Callable[[World], Any],
        *,
        teacher: str = "resnet8x4",
        student: str = "resnet8",
        image_shape: tuple[int, int, int] = (1, 8, 8),
        epochs: int = 3,
        lr: float = 0.02,
        recipe: Mapping[str, Any] | None = None,
        optimizer: Callable[[World], Callable[[Sequence[nn.Parameter]], Any]] = lambda world: SGD,
        **settings: Any,
    ) -> None:
        feed = SmallFeed(image_shape)
        torch.manual_seed(7)

        def build(model: str) -> TappedModel:
            return uneven(from_offer(registry.model(model), classes=CLASSES, image_shape=image_shape))

        networks = {"student": build(student), "teacher": build(teacher)}
        known = {key: signature(network, key, image_shape) for key, network in networks.items()}
        offer = registry.method(name)
        method = offer.load()(**{**offer.spec.presets, **settings}).double()
        method.setup(known["student"], known["teacher"], DataSignature(CLASSES, IMAGES, feed.labels))
        method.double()
        world = World(**copy.deepcopy(networks), method=copy.deepcopy(method), labels=feed.labels, epochs=epochs, lr=lr)
        found = Course()
        record_terms(method, found, world)
        folder = TrialFolder(tmp_path)
        folder.begin(TrialRecord(id="one", teacher="t", student="s", method=name, label=name, seed=3))
        learner = Learner(
            identifier="one",
            network=networks["student"],
            student=known["student"],
            teacher=known["teacher"],
            method=method,
            recipe=Recipe(
                **{
                    "epochs": epochs,
                    "drops": (epochs - 1,) if epochs > 1 else (),
                    "lr": lr,
                    "momentum": MOMENTUM,
                    "weight_decay": WEIGHT_DECAY,
                    "batch_size": BATCHES[0],
                    **(recipe or {}),
                }
            ),
            seed=3,
            folder=folder,
            device=CPU,
            steps_per_epoch=feed.steps_per_epoch,
        )
        used = TeacherUsed(key="k", sha256="s", top1=0.0, seconds=0.0)
        taught = FrozenTeacher(networks["teacher"].eval().requires_grad_(False), known["teacher"], used)
        made_with = {"data": DataUsed(name="d", fingerprint="f"), "environment": Environment(device="cpu")}
        Lockstep([learner], feed, taught, Silent(), **made_with, checkpoint_every=100).run()
        found.rates = [record.lr for record in learner.progress.records]
        found.nll = [record.metrics["nll"] for record in learner.progress.records if record.metrics]
        expected = train_plainly(world, reference(world), feed, optimizer(world))
        found.state = {f"network.{key}": value for key, value in learner.student.network.state_dict().items()}
        for path in world.adapters:
            theirs = learner.student.method.get_submodule(path).state_dict().values()
            found.state |= {f"{path}#{i}": value for i, value in enumerate(theirs)}
        compare(found, expected)

    return check


def compare(found: Course, expected: Course) -> None:
    """Fail where two courses differ: first in the steps, then in what they ended with."""
    assert len(found.steps) == len(expected.steps)
    for number, (ours, theirs) in enumerate(zip(found.steps, expected.steps, strict=True)):
        assert (ours[0], set(ours[1])) == (theirs[0], set(theirs[1])), f"step {number}"
        for term, value in theirs[1].items():
            assert math.isfinite(value)
            assert ours[1][term] == pytest.approx(value, rel=TOLERANCE, abs=0), f"step {number} ({ours[0]}): {term}"
    assert found.rates == pytest.approx(expected.rates, rel=1e-12)
    assert found.state.keys() >= expected.state.keys()
    for key, value in expected.state.items():
        # Relative to the tensor: single entries may be near 0, and so may biases before a normalisation.
        atol = TOLERANCE * max(value.abs().max().item(), 0.01)
        torch.testing.assert_close(
            found.state[key], value, rtol=TOLERANCE, atol=atol, msg=lambda m, key=key: f"{key}: {m}"
        )
    # What is evaluated is float32.
    assert found.nll == pytest.approx(expected.nll, rel=1e-5)
