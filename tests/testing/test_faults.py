"""Every check can fail: losses with one fault each, and what each check says of its own."""

from __future__ import annotations

import random
from typing import Annotated, Literal

import pytest
import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import nn

from kdbench.method import Method, NonNegative, Positive, Stage
from kdbench.testing import CHECKS, Status


class Sound(Method):
    """Labels, and the mean squared difference of an adapted embedding: no fault, and the base of all below."""

    reads = frozenset({"logits", "embedding"})

    def __init__(self, *, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def setup(self, student, teacher, data):
        self.adapter = nn.Linear(student.taps["embedding"].shape[0], teacher.taps["embedding"].shape[0])

    def labels(self, student, batch):
        return batch.cross_entropy(student.logits)

    def distance(self, student, teacher, batch):
        return F.mse_loss(self.adapter(student.embedding), teacher.embedding.detach())

    def forward(self, student, teacher, batch):
        return {
            "ce": (self.labels(student, batch), 1.0),
            "distance": (self.distance(student, teacher, batch), self.weight),
        }


# ---- contract


class AnyFloat(Sound):
    def __init__(self, *, temperature=4.0) -> None:
        super().__init__()


class Positional(Sound):
    def __init__(self, temperature: Positive = 4.0) -> None:
        super().__init__()


class DefaultOutOfRange(Sound):
    def __init__(self, *, temperature: Positive = 0.0) -> None:
        super().__init__()


class DividesBySetting(Sound):
    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def distance(self, student, teacher, batch):
        return super().distance(student, teacher, batch) * (1 / self.temperature)


class EdgeOfItsRange(DividesBySetting):
    """Allows 0, at which the loss is infinite."""

    def __init__(self, *, temperature: NonNegative = 4.0) -> None:
        super().__init__(temperature=temperature)

    def distance(self, student, teacher, batch):
        return Sound.distance(self, student, teacher, batch) / torch.tensor(self.temperature)


class Vector(Sound):
    def distance(self, student, teacher, batch):
        return (student.logits - teacher.logits).square().mean(1)


class OneNumber(Sound):
    def forward(self, student, teacher, batch):
        return self.labels(student, batch)


class Bare(Sound):
    def forward(self, student, teacher, batch):
        return {"ce": self.labels(student, batch)}


class Infinite(Sound):
    def labels(self, student, batch):
        return batch.cross_entropy(student.logits) / 0


class UnknownPart(Sound):
    def stages(self):
        return [Stage("first", self, 1, ("head",), self.reads)]


class StageCalledMain(Sound):
    def stages(self):
        return [Stage("main", self, 1, ("student", "adapter"), self.reads)]


class BrokenStage(Sound):
    def stages(self):
        return [Stage("first", self.first, 1, ("adapter",), self.reads)]

    def first(self, student, teacher, batch):
        raise ValueError("no such tap")


class OwnLabels(Sound):
    def labels(self, student, batch):
        return F.cross_entropy(student.logits, batch.labels)


class PredictsWithAdapter(Sound):
    def setup(self, student, teacher, data):
        super().setup(student, teacher, data)
        self.head = nn.Linear(student.taps["embedding"].shape[0], data.classes)

    def distance(self, student, teacher, batch):
        return super().distance(student, teacher, batch) + F.mse_loss(
            self.head(student.embedding), teacher.logits.detach()
        )

    def predict(self, student):
        return self.head(student.embedding)


class PredictsAnotherShape(Sound):
    def predict(self, student):
        return student.embedding


class PredictsByTheBatch(Sound):
    def predict(self, student):
        return student.logits - student.logits[:1]


# ---- gradients


class Detached(Sound):
    def labels(self, student, batch):
        return batch.cross_entropy(student.logits.detach())

    def distance(self, student, teacher, batch):
        return F.mse_loss(self.adapter(student.embedding.detach()), teacher.embedding.detach())


class UnusedAdapter(Sound):
    def setup(self, student, teacher, data):
        super().setup(student, teacher, data)
        self.unused = nn.Linear(2, 2)


class TrainsTheTeacher(Sound):
    def distance(self, student, teacher, batch):
        return F.mse_loss(student.logits, teacher.logits)

    def setup(self, student, teacher, data):
        pass


class Proper(TrainsTheTeacher):
    def distance(self, student, teacher, batch):
        return F.mse_loss(student.logits, teacher.logits.detach())


class WritesToTheTeacher(Proper):
    def distance(self, student, teacher, batch):
        return F.mse_loss(student.logits, teacher.logits.detach().div_(4.0))


# ---- numbers


class DividesByNorm(Proper):
    """NaN where a row is zero."""

    def distance(self, student, teacher, batch):
        e = student.embedding
        return (e / e.square().sum(1, keepdim=True).sqrt()).square().mean()


class NormaliseOfZero(Proper):
    """Finite, but with a gradient of 1e12 where a row is zero."""

    def distance(self, student, teacher, batch):
        return F.normalize(student.embedding).sum(1).mean()


class Distances(Proper):
    """The gradient of a distance is NaN between duplicates."""

    def distance(self, student, teacher, batch):
        e = student.embedding
        return (e[1:] - e[:-1]).square().sum(1).sqrt().sum() / len(e)


class Spread(Proper):
    """The standard deviation of one image is NaN."""

    def distance(self, student, teacher, batch):
        return (student.embedding.var(0) + 1).log().mean()


class LogOfSoftmax(Proper):
    def distance(self, student, teacher, batch):
        p, q = student.logits.softmax(1), teacher.logits.detach().softmax(1)
        return (q * (q.log() - p.log())).sum(1).mean()


class TinyDivisor(Proper):
    def distance(self, student, teacher, batch):
        return 1 / student.logits.pow(6).mean()


class OwnSoftplus(Proper):
    def distance(self, student, teacher, batch):
        return (1 + student.embedding.exp()).log().mean()


class TinyFeatureDivisor(Proper):
    def distance(self, student, teacher, batch):
        return (student.embedding.pow(6).mean() / teacher.embedding.detach().pow(6).mean() + 1).log()


class RoundingError(Proper):
    def __init__(self) -> None:
        super().__init__()

    def distance(self, student, teacher, batch):
        x = student.logits
        return 1 / (x - x.to(torch.float16)).abs().max()


class BrainRoundingError(RoundingError):
    def distance(self, student, teacher, batch):
        x = student.logits
        return 1 / (x - x.to(torch.bfloat16)).abs().max()


# ---- batches


class Neighbours(Proper):
    def distance(self, student, teacher, batch):
        d = student.logits - teacher.logits.detach()
        return (d * d.roll(1, 0)).mean()


class Summed(Proper):
    def distance(self, student, teacher, batch):
        return F.mse_loss(student.logits, teacher.logits.detach(), reduction="sum")


# ---- module


class PlainList(Sound):
    def setup(self, student, teacher, data):
        super().setup(student, teacher, data)
        self.scales = [nn.Parameter(torch.ones(teacher.taps["embedding"].shape[0]))]

    def distance(self, student, teacher, batch):
        return (self.adapter(student.embedding) * self.scales[0] - teacher.embedding.detach()).square().mean()


class HiddenInADictionary(Sound):
    def setup(self, student, teacher, data):
        super().setup(student, teacher, data)
        self.modules_by_name = {"regressor": nn.Linear(2, 2)}


class Unsaved(Proper):
    def setup(self, student, teacher, data):
        self.register_buffer("projection", torch.randn(data.classes, data.classes), persistent=False)

    def distance(self, student, teacher, batch):
        return F.mse_loss(student.logits @ self.projection, teacher.logits.detach())


class Grows(Proper):
    """A parameter that only training makes: a new method does not know it."""

    def distance(self, student, teacher, batch):
        if not hasattr(self, "scale"):
            self.register_buffer("scale", teacher.logits.detach().std())
        return F.mse_loss(student.logits, teacher.logits.detach()) / self.scale


class HoldsAFunction(Proper):
    def __init__(self) -> None:
        super().__init__()
        self.activation = lambda x: x.relu()


class Random(Proper):
    def distance(self, student, teacher, batch):
        return random.random() * F.mse_loss(student.logits, teacher.logits.detach())


class Centred(Proper):
    """A moving average, registered as it should be."""

    def setup(self, student, teacher, data):
        self.register_buffer("centre", torch.zeros(data.classes))

    def distance(self, student, teacher, batch):
        return F.mse_loss(student.logits, teacher.logits.detach() - self.centre)

    def after_step(self, student, teacher, batch):
        self.centre.lerp_(teacher.logits.mean(0), 0.1)


# ---- placement


class MadeOnTheCpu(Proper):
    def distance(self, student, teacher, batch):
        margin = torch.full((student.logits.shape[1],), 0.1)
        return (student.logits - teacher.logits.detach() + margin).square().mean()


class AsksForAValue(Proper):
    def distance(self, student, teacher, batch):
        loss = F.mse_loss(student.logits, teacher.logits.detach())
        return loss if loss.item() < 1e30 else loss.sqrt()


class DecidesByAValue(Proper):
    def distance(self, student, teacher, batch):
        loss = F.mse_loss(student.logits, teacher.logits.detach())
        return loss if loss < 1e30 else loss.sqrt()


class ListOfValues(Proper):
    def distance(self, student, teacher, batch):
        return F.mse_loss(student.logits, teacher.logits.detach()) * len(batch.labels.tolist()) / len(batch.labels)


class NumpyOfValues(Proper):
    def distance(self, student, teacher, batch):
        scale = float(teacher.logits.detach().cpu().numpy().std())
        return F.mse_loss(student.logits, teacher.logits.detach()) / (scale + 1)


class MaskAsIndex(Proper):
    def distance(self, student, teacher, batch):
        right = teacher.logits.detach().argmax(1) < 11
        return F.mse_loss(student.logits[right], teacher.logits.detach()[right])


class Decomposition(Proper):
    def distance(self, student, teacher, batch):
        return torch.linalg.svdvals(student.logits.detach()).mean() + F.mse_loss(
            student.logits, teacher.logits.detach()
        )


# (the faulty loss, the check that must fail, what it says; further checks that cannot but fail with it, ... for many)
class CountsOnTheHost(Sound):
    """Its weight is a number that Python counts up, which a graph would keep."""

    steps = 0

    def forward(self, student, teacher, batch):
        self.steps += 1
        return {"ce": (self.labels(student, batch), 1 / self.steps)}


class OtherOperationsLater(Sound):
    """A term changes after three steps that Python counts."""

    steps = 0

    def forward(self, student, teacher, batch):
        self.steps += 1
        distance = self.distance(student, teacher, batch)
        return {
            "ce": (self.labels(student, batch), 1.0),
            "distance": (distance.sqrt() if self.steps > 3 else distance, 1.0),
        }


class MadeOnTheHost(Sound):
    def forward(self, student, teacher, batch):
        scale = torch.tensor([0.5, 0.5], device=student.logits.device).sum()
        return {"ce": (self.labels(student, batch), 1.0), "distance": (self.distance(student, teacher, batch), scale)}


FAULTS = [
    (AnyFloat, "settings", "temperature has no annotation", ()),
    (Positional, "settings", "temperature must be a keyword-only argument", ()),
    (DefaultOutOfRange, "settings", "temperature: its default 0.0 is out of its range", ()),
    (DividesBySetting, "settings", "temperature = 0.0 is accepted, and then fails: float division by zero; give", ()),
    (EdgeOfItsRange, "settings", "temperature = 0 is accepted, and the loss is then not finite", ()),
    (Vector, "terms", "main: term 'distance' must be a scalar, got shape (8,)", ...),
    (OneNumber, "terms", "main: must return named terms, got Tensor", ...),
    (Bare, "terms", "main: term 'ce' must be a pair (value, weight), got Tensor", ...),
    (Infinite, "terms", "main: term 'ce' is inf", ...),
    (UnknownPart, "training", "PluginError: stage 'first' trains 'head', which is no submodule", ...),
    (StageCalledMain, "training", "stages need different names, none of them 'main'", ...),
    (BrokenStage, "training", "ValueError: no such tap", ...),
    (OwnLabels, "labels", "main: mixed labels have no effect; use batch.cross_entropy(logits)", ()),
    (PredictsWithAdapter, "predict", "predict uses head.weight, head.bias, which is not in part_of_student", ()),
    (PredictsAnotherShape, "predict", "predict must return logits of shape (8, 10), got (8, 64)", ()),
    (PredictsByTheBatch, "predict", "depends on the other images of the batch", ()),
    (Detached, "student-gradient", "main: no gradient reaches the student; is its output detached?", ("training",)),
    (UnusedAdapter, "adapter-gradient", "no gradient reaches unused.weight, unused.bias", ()),
    (TrainsTheTeacher, "teacher-gradient", "main: a gradient reaches the teacher's logits; detach them", ()),
    (WritesToTheTeacher, "outputs-unchanged", "forward writes to the teacher's logits", ...),
    (DividesByNorm, "zero-rows", "main: term 'distance' is nan", ...),
    (NormaliseOfZero, "zero-rows", "main: the gradient at student's embedding reaches", ...),
    (Distances, "duplicate-rows", "main: the gradient at student's embedding is not finite, though the loss is", ...),
    (Spread, "one-image", "main: term 'distance' is nan", ()),
    (LogOfSoftmax, "huge-logits", "main: term 'distance' is nan", ()),
    (TinyDivisor, "tiny-logits", "main: term 'distance' is inf", ...),
    (OwnSoftplus, "huge-features", "main: term 'distance' is inf", ()),
    (TinyFeatureDivisor, "tiny-features", "main: term 'distance' is nan", ...),
    (RoundingError, "fp16", "main: term 'distance' is inf", ...),
    (BrainRoundingError, "bf16", "main: term 'distance' is inf", ...),
    (Neighbours, "batch-order", "main: term 'distance' changes by", ()),
    (Summed, "batch-growth", "main: term 'distance' grows as B^1.00", ()),
    (PlainList, "registered", "scales[0] contains a tensor of shape (64,): use nn.Parameter", ("device",)),
    (HiddenInADictionary, "registered", "modules_by_name['regressor'] contains a Linear with parameters", ()),
    (Unsaved, "round-trip", "main: term 'distance' differs with its state loaded into a new one", ()),
    (Grows, "round-trip", "a new method cannot load the state dictionary", ...),
    (HoldsAFunction, "pickle", "cannot be pickled", ()),
    (Random, "seed", "main: term 'distance' differs with the same seed", ...),
    (Centred, "state", "main: term 'distance' differs after other batches", ()),
    (PlainList, "device", "main: a tensor of shape (64,) does not move with the method; register it", ("registered",)),
    (MadeOnTheCpu, "device", "main: a tensor is created on the CPU, not on its inputs' device", ()),
    (AsksForAValue, "host-sync", "main: a value is read on the host", ()),
    (DecidesByAValue, "host-sync", "main: a value is read on the host", ()),
    (ListOfValues, "host-sync", "main: a value is read on the host", ()),
    (NumpyOfValues, "host-sync", "main: ", ()),
    (MaskAsIndex, "host-sync", "main: a shape depends on values", ()),
    (Decomposition, "host-sync", "main: linalg_svd: its status is read on the host", ()),
    (CountsOnTheHost, "capturable", "main: steps differ: aten.", ...),
    (OtherOperationsLater, "capturable", "main: a replay is not the step: aten.", ...),
    (MadeOnTheHost, "capturable", "main: aten.lift_fresh.default: a tensor is made of numbers of the host", ()),
]


@pytest.mark.parametrize(("loss", "check", "says", "others"), FAULTS, ids=lambda x: getattr(x, "__name__", None))
def test_a_fault_is_caught_by_its_check(loss, check, says, others, examination):
    examination = examination(loss)
    # The check capturable trains: it is asked where it is to fail.
    asked = [c for c in CHECKS if c.name == check or (others is not ... and c.name != "capturable")]
    results = {c.name: examination.ask(c) for c in asked}
    failed = {name for name, result in results.items() if result.status is Status.FAILED}
    assert check in failed, results[check]
    assert says in results[check].reason
    if others is not ...:
        assert failed == {check, *others}, [results[name] for name in failed]


def test_a_sound_loss_passes_every_check(examination):
    results = list(examination(Sound, "resnet20:resnet8", "wrn_16_2:resnet8", "resnet20:deit_micro").results())
    assert [r for r in results if r.status is not Status.PASSED] == []


def test_every_check_is_seen_to_fail():
    assert {check for _, check, _, _ in FAULTS} == {check.name for check in CHECKS}


def test_checks_have_a_question_and_a_name_of_their_own():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.question.endswith(("?", ".", ")")) for check in CHECKS)
    assert all(len(check.question) < 110 for check in CHECKS)


class Chosen(Sound):
    def __init__(self, *, kind: Literal["a", "b"] = "a", margin: float = 0.5, scale: Annotated[int, Gt(2)] = 3) -> None:
        super().__init__()
        self.kind = kind


def test_a_setting_without_a_range_is_reported(examination):
    results = {result.check: result for result in examination(Chosen).results()}
    assert results["settings"].status is Status.PASSED
    assert results["settings"].reason == "accepted without a range: margin"


def test_the_growth_of_every_term_is_reported(examination):
    results = {result.check: result for result in examination(Sound).results()}
    assert results["batch-growth"].reason == "exponent of B: ce +0.00, distance +0.00"
