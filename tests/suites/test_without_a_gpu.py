"""Steps on a GPU that is not there.

Fake tensors have a device and no values: they refuse to meet a tensor of another device, and whoever asks for
a value, for which a GPU would be waited, fails; so does a step that copies something over from the CPU. So the
engine's own steps, feeds and augmentations are held to what ``kdbench check`` holds methods to. What needs a
driver is not tried: events, memory counters, autocast, moving modules, the backward pass, the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.data.base import Arrays, Split
from kdbench.data.feed import Feed
from kdbench.data.open import open_feed
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.engine.stages import through
from kdbench.method import DataSignature, Method
from kdbench.models.base import TappedModel, signature
from kdbench.parts import Parts
from kdbench.resolve import Resolver
from kdbench.results import TeacherUsed, TrialFolder
from kdbench.run import Opened, open_suite

GPU = torch.device("cuda", 0)
BATCH = 4
AUGMENTATION = """[
    {name = "crop"}, {name = "flip"}, {name = "shift"}, {name = "random_resized_crop", size = 8},
    {name = "cutout"}, {name = "random_erasing"}, {name = "mixup"}, {name = "cutmix"},
]""".replace("\n", "")


class Anywhere(torch.Generator):
    """A generator for whatever device, on the CPU: fake tensors draw nothing from it."""

    def __new__(cls, device: Any = None) -> Anywhere:
        return super().__new__(cls)


class NothingComesOver(TorchDispatchMode):
    """Refuses copies from the CPU to the GPU, which wait for both."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        if func.overloadpacket in {torch.ops.aten._to_copy, torch.ops.aten.copy_}:
            source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            if source.device.type == "cpu" and given.device == GPU:
                raise AssertionError(f"{func} from the CPU")
        return given


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def backward(loss: torch.Tensor) -> None:
        assert (loss.device, loss.dtype, loss.ndim) == (GPU, torch.float32, 0)

    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 1.0)
    for name, value in {
        "Event": lambda enable_timing: event,
        "default_generators": (Anywhere(),),
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 0,
        "max_memory_allocated": lambda device: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "Generator", Anywhere)
    monkeypatch.setattr(torch.autograd, "backward", backward)
    # What is made here is on the GPU from the start; fake parameters cannot be swapped for moved ones.
    monkeypatch.setattr(nn.Module, "to", lambda self, *where, **how: self)
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        monkeypatch.setattr(optimizer, "step", lambda self: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture(scope="module")
def study() -> Opened:
    pair = 'pairs=[{teacher = "resnet20", student = "resnet8"}]'
    shortened = ("seeds=[0]", f"recipe.batch_size={BATCH}", "recipe.precision=float32", "recipe.ema_decay=0.9")
    # Planned with real tensors.
    opened = open_suite("classics", overrides=(pair, f"recipe.augmentation={AUGMENTATION}", *shortened))
    assert opened.plan.trials
    return opened


@pytest.fixture
def feed(study: Opened, gpu: None) -> Feed:
    def split(count: int) -> Split:
        return Split(np.zeros((count, 1, 8, 8), dtype=np.uint8), np.arange(count, dtype=np.int64))

    recipe = study.suite.recipe
    arrays = Arrays(split(2 * BATCH), split(2), "made up", mean=(0.3,), std=(0.2,))
    return open_feed(
        arrays,
        study.resolver.facts,
        augmentation=Parts.of(recipe).steps,
        batch_size=recipe.batch_size,
        seed=0,
        device=GPU,
    )


def network(resolver: Resolver, name: str) -> TappedModel:
    with GPU:
        made = resolver.network(name)
    made.accept_normalisation((0.3,), (0.2,))
    return made


@pytest.fixture
def teacher(study: Opened, gpu: None) -> FrozenTeacher:
    made = network(study.resolver, "resnet20").eval()
    return FrozenTeacher(
        made, signature(made, "resnet20", (1, 8, 8)), TeacherUsed(key="", sha256="", top1=1.0, seconds=0.0)
    )


@pytest.fixture
def learner(study: Opened, feed: Feed, teacher: FrozenTeacher, tmp_path: Path) -> Callable[[Method, str], Learner]:
    def make(method: Method, name: str) -> Learner:
        student = network(study.resolver, "resnet8")
        known = signature(student, "resnet8", (1, 8, 8))
        with GPU:
            method.setup(known, teacher.signature, DataSignature(10, feed.n_train, torch.zeros(feed.n_train)))
        return Learner(
            identifier=name,
            network=student,
            student=known,
            teacher=teacher.signature,
            method=method,
            recipe=study.suite.recipe,
            seed=0,
            folder=TrialFolder(tmp_path / name),
            device=GPU,
            steps_per_epoch=feed.steps_per_epoch,
        )

    return make


def train(learner: Learner, feed: Feed, teacher: FrozenTeacher) -> None:
    """An epoch of each stage."""
    trainer = learner.trainer
    for phase in through(trainer):
        trainer.begin_epoch()
        for number, minibatch in enumerate(feed.epoch("main", 0)):
            assert {minibatch.images.device, minibatch.labels.device, minibatch.indices.device} == {GPU}
            shown = teacher(minibatch.images, phase.teacher_reads, trainer.precision)
            with NothingComesOver():
                trainer.step(number, minibatch, shown)
    with learner.student.evaluated():
        for images, labels in feed.evaluate():
            assert (learner.predict(images).device, labels.device) == (GPU, GPU)


def test_every_formulation_takes_its_steps_there(study, feed, teacher, learner):
    for trial in study.plan.trials:
        with GPU:
            method = study.resolver.method(trial)
        train(learner(method, trial.id), feed, teacher)


class Forgetful(Method):
    """Makes a tensor on the CPU."""

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits + torch.zeros(student.logits.shape)), 1.0)}


class Curious(Method):
    """Looks at a value."""

    def forward(self, student, teacher, batch):
        value = batch.cross_entropy(student.logits)
        return {"ce": (value, 1.0 if value > 1 else 0.5)}


class Fetching(Method):
    """Makes a tensor on the CPU and moves it."""

    def forward(self, student, teacher, batch):
        weight = torch.tensor([0.5, 0.5]).to(student.logits.device)
        return {"ce": (batch.cross_entropy(student.logits) * weight.sum(), 1.0)}


class Indexing(Method):
    """Gathers by indices that lie on the CPU."""

    def forward(self, student, teacher, batch):
        return {"ce": (student.logits.gather(1, torch.zeros(len(batch.labels), 1, dtype=torch.long)).mean(), 1.0)}


@pytest.mark.parametrize(
    ("method", "error"),
    [
        (Forgetful, RuntimeError),
        (Curious, DataDependentOutputException),
        (Fetching, AssertionError),
        (Indexing, RuntimeError),
    ],
)
def test_it_can_fail(feed, teacher, learner, method, error):
    with pytest.raises(error):
        train(learner(method(), "a"), feed, teacher)
