"""Every check of a model can fail: networks with one fault each, and the answer of the check that finds it."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.discovery import Offer, Provider
from kdbench.errors import ModelError
from kdbench.hookspecs import ModelSpec
from kdbench.models.base import NONNEGATIVE, SIGNED, Recorder, TappedModel
from kdbench.testing import MODEL_CHECKS, Status, examine_model
from kdbench.testing.runner import ModelExamination


class Sound(TappedModel):
    """Two convolutions and a linear layer: no fault, and the base of all below."""

    family = "plain"
    head = ("fc",)
    classifier = "fc"
    taps = {"stage1/pre": SIGNED, "stage1": NONNEGATIVE, "embedding": NONNEGATIVE, "logits": SIGNED}  # noqa: RUF012

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def stage(self, images):
        return self.norm(self.conv(images))

    def activate(self, x):
        return F.relu(x)

    def forward(self, images, reads=()):
        record = Recorder(self, reads)
        x = record("stage1/pre", self.stage(images))
        x = record("stage1", self.activate(x))
        x = record("embedding", x.mean((2, 3)))
        record("logits", self.fc(x))
        return record.taps


# ---- contract


def plain(classes, channels):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


class NoTaps(Sound):
    taps = None


class NoLogits(Sound):
    taps = {"stage1": NONNEGATIVE}  # noqa: RUF012


class NoSigns(Sound):
    taps = {"stage1": "nonnegative", "logits": "signed"}  # noqa: RUF012


class NoFamily(Sound):
    family = ""


class HeadIsAText(Sound):
    head = "fc"


class UnknownHead(Sound):
    head = ("linear",)


class UnknownClassifier(Sound):
    classifier = "linear"


class NoReads(Sound):
    def forward(self, images):
        return super().forward(images)


class BareLogits(Sound):
    def forward(self, images, reads=()):
        return super().forward(images)["logits"]


class TapLeftOut(Sound):
    def forward(self, images, reads=()):
        return super().forward(images, set(reads) - {"embedding"})


class SpatialLogits(Sound):
    def forward(self, images, reads=()):
        taps = super().forward(images, reads)
        return taps | {"logits": taps["logits"][:, :, None]}


class OtherClasses(Sound):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(1000, channels)


def raises(classes, channels):
    raise ValueError("no such depth")


# ---- device


class MadeOnTheCpu(Sound):
    def stage(self, images):
        return super().stage(images) + torch.ones(8, 1, 1, device="cpu").expand(8, *images.shape[2:])


# ---- taps


class ReturnsEverything(Sound):
    def forward(self, images, reads=()):
        return super().forward(images, tuple(self.taps))


class DependsOnReads(Sound):
    def forward(self, images, reads=()):
        taps = super().forward(images, reads)
        return {name: tap * len(reads) if name == "embedding" else tap for name, tap in taps.items()}


class ReturnedInAnotherOrder(Sound):
    def forward(self, images, reads=()):
        return dict(reversed(super().forward(images, reads).items()))


class DeclaredInAnotherOrder(Sound):
    taps = {"stage1": NONNEGATIVE, "stage1/pre": SIGNED, "embedding": NONNEGATIVE, "logits": SIGNED}  # noqa: RUF012

    def forward(self, images, reads=()):
        taps = super().forward(images, reads)
        return {name: taps[name] for name in self.taps if name in taps}


class SignedEmbedding(Sound):
    """A negative value where a nonnegative one is declared."""

    taps = {"stage1/pre": SIGNED, "stage1": NONNEGATIVE, "embedding": NONNEGATIVE, "logits": SIGNED}  # noqa: RUF012

    def activate(self, x):
        return F.silu(x)


class SignedAfterTraining(Sound):
    """Nonnegative only as long as the layer that it ends in is zero."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.scale = nn.Parameter(torch.zeros(8))

    def activate(self, x):
        return F.relu(x) + self.scale[:, None, None] * x


class SignedInEvalModeOnly(Sound):
    def activate(self, x):
        return F.relu(x) if self.training else F.leaky_relu(x)


class NonnegativeEmbedding(Sound):
    """Declared signed, though it follows a ReLU."""

    taps = {"stage1/pre": SIGNED, "stage1": NONNEGATIVE, "embedding": SIGNED, "logits": SIGNED}  # noqa: RUF012


class InPlace(Sound):
    def activate(self, x):
        return F.relu(x, inplace=True)


class InPlaceWithoutRecorder(Sound):
    def forward(self, images, reads=()):
        pre = self.stage(images)
        stage = F.relu_(pre)
        embedding = stage.mean((2, 3))
        taps = {"stage1/pre": pre, "stage1": stage, "embedding": embedding, "logits": self.fc(embedding)}
        return {name: tap for name, tap in taps.items() if name in {*reads, "logits"}}


class AddsInPlaceInTrainMode(Sound):
    def forward(self, images, reads=()):
        record = Recorder(self, reads)
        x = record("stage1/pre", self.stage(images))
        x = record("stage1", self.activate(x))
        embedding = record("embedding", x.mean((2, 3)))
        record("logits", self.fc(embedding.clone()))
        if self.training:
            embedding += 1
        return record.taps


class NormalisesByTheBatch(Sound):
    def activate(self, x):
        return F.relu(x / x.std())


class FlattensTheBatch(Sound):
    taps = {"stage1/pre": SIGNED, "stage1": NONNEGATIVE, "embedding": NONNEGATIVE, "logits": SIGNED}  # noqa: RUF012

    def forward(self, images, reads=()):
        taps = super().forward(images, reads)
        return {name: tap.squeeze(0) if name == "embedding" else tap for name, tap in taps.items()}


class OtherClassifier(Sound):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.other = nn.Linear(8, classes)

    classifier = "other"
    head = ("other", "fc")


class HeadWithoutClassifier(Sound):
    head = ("norm",)


# ---- training


class Unused(Sound):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.unused = nn.Linear(2, 2)


class Detached(Sound):
    def activate(self, x):
        return F.relu(x.detach())


class WritesToTheImages(Sound):
    def stage(self, images):
        return super().stage(images.mul_(0.5))


class WritesToTheImagesInTrainMode(Sound):
    def stage(self, images):
        return super().stage(images.clamp_(-1, 1) if self.training else images)


class DropoutInEvalMode(Sound):
    def activate(self, x):
        return F.dropout(F.relu(x), 0.5)


class CountsInEvalMode(Sound):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.register_buffer("seen", torch.zeros(()))

    def stage(self, images):
        self.seen += len(images)
        return super().stage(images)


class HiddenState(Sound):
    """A tensor that no state dictionary contains."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.shift = torch.randn(8, 1, 1)

    def stage(self, images):
        return super().stage(images) + self.shift.to(images.device)


class SharedTensors(Sound):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.twin = nn.Linear(8, classes)
        self.twin.weight = self.fc.weight

    def forward(self, images, reads=()):
        taps = super().forward(images, (*reads, "embedding"))
        taps["logits"] = taps["logits"] + 0 * self.twin(taps["embedding"])
        return {name: tap for name, tap in taps.items() if name in {*reads, "logits"}}


class DrawnElsewhere(Sound):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        nn.init.constant_(self.fc.bias, random.random())


class NoiseFromElsewhere(Sound):
    def stage(self, images):
        return super().stage(images) * (random.random() if self.training else 1.0)


class SeedsItself(Sound):
    def __init__(self, classes: int, channels: int) -> None:
        torch.manual_seed(0)
        super().__init__(classes, channels)


class SeedsItselfInForward(Sound):
    def stage(self, images):
        torch.manual_seed(0)
        return super().stage(images)


class SetsPrecision(Sound):
    def stage(self, images):
        torch.set_float32_matmul_precision("medium")
        return super().stage(images)


class SetsDefaultType(Sound):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        torch.set_default_dtype(torch.float64)


class LeavesGradModeOff(Sound):
    def stage(self, images):
        x = super().stage(images)
        torch.set_grad_enabled(False)
        return x


# Model, the check that finds it, what that says, and the other checks that find it, too (... : not of interest).
FAULTS = [
    (plain, "contract", "its builder must return a kdbench.models.base.TappedModel, got Sequential", ...),
    (NoTaps, "contract", "taps must map each tap's name to NONNEGATIVE or SIGNED, got None", ...),
    (NoSigns, "contract", "taps must map each tap's name to NONNEGATIVE or SIGNED, got {'stage1': 'nonneg", ...),
    (NoLogits, "contract", "taps must contain logits, got stage1", ...),
    (NoFamily, "contract", "family must name the architecture's family, such as 'resnet', got ''", ...),
    (HeadIsAText, "contract", "head must be a tuple of names of submodules, got 'fc'", ...),
    (UnknownHead, "contract", "head must be a tuple of names of submodules, got ('linear',)", ...),
    (UnknownClassifier, "contract", "classifier must be the name of a submodule, got 'linear'", ...),
    (NoReads, "contract", "forward must take reads: forward(self, images, reads=())", ...),
    (BareLogits, "contract", "model 'mine': forward must return a dictionary of taps, got Tensor", ...),
    (TapLeftOut, "contract", "model 'mine': forward must return a tensor for tap 'embedding', got nothing", ...),
    (SpatialLogits, "contract", "model 'mine': logits must have shape (B, C), got (2, 10, 1) for B = 2", ...),
    (OtherClasses, "contract", "returns 1000 logits for 10 classes", ...),
    (raises, "contract", "ValueError: no such depth", ...),
    (MadeOnTheCpu, "device", "a tensor stays on the CPU: Tensor on device cpu is not on the expected device meta", ()),
    (ReturnsEverything, "reads", "reading only stage1/pre returns stage1/pre, stage1, embedding, logits", ...),
    (DependsOnReads, "reads", "embedding has other values if no other tap is read", ()),
    (ReturnedInAnotherOrder, "tap-order", "returned in the order logits, embedding, stage1, stage1/pre", ()),
    (DeclaredInAnotherOrder, "tap-order", "stage1 is computed from stage1/pre, which is declared after it", ()),
    (SignedEmbedding, "signs", "declared nonnegative, with negative values: stage1 (-0.2", ()),
    (SignedAfterTraining, "signs", "declared nonnegative, with negative values: stage1 (-", ()),
    (SignedInEvalModeOnly, "signs", "declared nonnegative, with negative values: stage1 (-0.0", ()),
    (NonnegativeEmbedding, "signs", "declared signed, without negative values: embedding; unless an activation", ()),
    (InPlace, "in-place", "stage1/pre: changed after being recorded, in train mode", ("signs",)),
    (InPlaceWithoutRecorder, "in-place", "stage1/pre and stage1 are one tensor", ("signs",)),
    (AddsInPlaceInTrainMode, "in-place", "embedding: changed after being recorded, in train mode", ()),
    (NormalisesByTheBatch, "batch-sizes", "stage1 of an image changes with the other images of the batch", ()),
    (FlattensTheBatch, "batch-sizes", "embedding has shape (8,) for 1 images, expected (1, 8)", ()),
    (OtherClassifier, "classifier", "the logits are not the output of 'other'", ("gradient",)),
    (HeadWithoutClassifier, "classifier", "head must contain the classifier 'fc', got ('norm',)", ()),
    (Unused, "gradient", "no gradient from logits reaches unused.weight, unused.bias; remove what is not used", ()),
    (Detached, "gradient", "no gradient from logits reaches conv.weight, conv.bias, norm.weight, norm.bias", ()),
    (WritesToTheImages, "images-unchanged", "the forward pass writes to the images in train mode", ...),
    (WritesToTheImagesInTrainMode, "images-unchanged", "writes to the images in train mode", ()),
    (DropoutInEvalMode, "deterministic", "logits: other values at the second pass", ...),
    (CountsInEvalMode, "deterministic", "eval mode changes seen", ()),
    (HiddenState, "round-trip", "other values in a new network with the same state; register it", ()),
    (SharedTensors, "round-trip", "the state dictionary is not restored: Some tensors share memory", ...),
    (DrawnElsewhere, "seed", "the same seed gives other initial values of fc.bias; draw from torch", ...),
    (NoiseFromElsewhere, "seed", "the same seed gives other values of", ...),
    (SeedsItself, "global-state", "building it seeds torch's random numbers; remove torch.manual_seed", ()),
    (SeedsItselfInForward, "global-state", "its forward pass seeds torch's random numbers", ()),
    (SetsPrecision, "global-state", "it changes the precision of float32 products of the process", ...),
    (SetsDefaultType, "global-state", "it changes the default dtype of the process", ...),
    (LeavesGradModeOff, "global-state", "it changes grad mode of the process", ...),
]


@pytest.fixture
def offer(monkeypatch):
    """A builder or class, as something on offer under the name ``mine``."""

    def make(thing):
        def build(*, classes, image_shape):
            return thing(classes, image_shape[0])

        return Offer(ModelSpec("mine", "nowhere:build"), Provider("mine.py", "local", hash_source=True), loaded=build)

    return make


@pytest.mark.parametrize(("model", "check", "says", "others"), FAULTS, ids=lambda x: getattr(x, "__name__", None))
def test_a_fault_is_caught_by_its_check(model, check, says, others, offer):
    report = examine_model(offer(model))
    failed = {result.check: result.reason for result in report.having(Status.FAILED)}
    assert check in failed, report.results
    assert says in failed[check]
    if others is not ...:
        assert failed.keys() == {check, *others}, failed
    if check == "contract":
        skipped = report.having(Status.SKIPPED)
        assert len(skipped) == len(MODEL_CHECKS) - 1
        assert {result.reason for result in skipped} == {"the check 'contract' fails"}
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_sound_network_passes_every_check(offer):
    report = examine_model(offer(Sound))
    assert [result for result in report.results if result.status is not Status.PASSED] == []
    assert report.tried_on == ["3x32x32", "3x64x64"]


def test_every_check_is_seen_to_fail():
    assert {check for _, check, _, _ in FAULTS} == {check.name for check in MODEL_CHECKS}


def test_checks_have_a_question_and_a_name_of_their_own():
    assert len({check.name for check in MODEL_CHECKS}) == len(MODEL_CHECKS)
    assert all(check.question.endswith(("?", ".", ")")) for check in MODEL_CHECKS)
    assert all(len(check.question) < 120 for check in MODEL_CHECKS)


def test_a_size_that_the_model_refuses_is_no_failure(offer):
    class Large(Sound):
        def __init__(self, classes, image_shape):
            if image_shape[1] < 64:
                raise ModelError("large: images must be at least 64 pixels high and wide")
            super().__init__(classes, image_shape[0])

    made = offer(None)
    report = examine_model(
        Offer(made.spec, made.provider, loaded=lambda *, classes, image_shape: Large(classes, image_shape))
    )
    assert report.passed
    assert report.tried_on == ["3x64x64"]
    assert report.refused == {"3x32x32": "large: images must be at least 64 pixels high and wide"}


def test_a_size_that_fails_otherwise_is_a_failure(offer):
    class OneSize(Sound):
        def __init__(self, classes, channels):
            super().__init__(classes, channels)
            self.fc = nn.Linear(8 * 32 * 32, classes)

        def forward(self, images, reads=()):
            record = Recorder(self, reads)
            x = record("stage1/pre", self.stage(images))
            x = record("stage1", self.activate(x))
            x = record("embedding", x.flatten(1))
            record("logits", self.fc(x))
            return record.taps

    [first, *_] = examine_model(offer(OneSize)).having(Status.FAILED)
    assert first.check == "contract"
    assert first.reason.startswith("3x64x64: RuntimeError: ")
    assert "shapes cannot be multiplied" in first.reason


def test_a_model_that_takes_no_shape_is_a_failure(offer):
    def refuses(classes, channels):
        raise ModelError("only grey images")

    examination = ModelExamination(offer(refuses))
    result = examination.ask(MODEL_CHECKS[0])
    assert result.status is Status.FAILED
    assert result.reason == (
        "the model supports none of the image shapes (3x32x32: only grey images; 3x64x64: only grey images; "
        "3x224x224: only grey images)"
    )
