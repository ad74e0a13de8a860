"""What the tests of the first-party methods share: shape checks, golden vectors, hand-made networks' facts."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from kdbench_methods import METHODS
from torch import Tensor

from kdbench.method import Batch, DataSignature, Method, Output, Signature, TapSignature

# Every annotated shape of the methods is checked while these tests run.
with install_import_hook("kdbench_methods", "beartype.beartype"):
    for _spec in METHODS:
        importlib.import_module(_spec.target.partition(":")[0])

GOLDEN = Path(__file__).parents[2] / "golden"
CLASSES = 10
# A method without a default for a setting is built with this; here members with stages, reads and heads of their own.
REQUIRED = {"combine": {"methods": [{"name": name} for name in ("crd", "ft", "ab", "deit", "vid")]}}


class Golden(dict[str, Any]):
    """A golden case: tensors by name; student inputs and parameters are leaves that record gradients."""

    def leaves(self, *names: str) -> list[Tensor]:
        return [self[name].requires_grad_() for name in names]

    def check(self, loss: Tensor, rtol: float, parameters: Mapping[str, Tensor] | None = None) -> None:
        """``loss``, and its gradients for every ``in_X`` and parameter ``X`` that the file has one for."""
        torch.testing.assert_close(loss.detach(), self["loss"], rtol=rtol, atol=0)
        loss.backward()
        for key, expected in self.items():
            if key.startswith("grad_"):
                _assert_gradient(self[f"in_{key[5:]}"].grad, expected, rtol, key)
            if key.startswith("gradp_"):
                assert parameters is not None
                _assert_gradient(parameters[key[6:]].grad, expected, rtol, key)


def _assert_gradient(found: Tensor | None, expected: Tensor, rtol: float, name: str) -> None:
    """Relative to the largest entry: entries that cancel to nearly 0 hold rounding alone."""
    assert found is not None, f"{name}: no gradient"
    atol = rtol * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """Load a case by its file's stem."""

    def load(name: str) -> Golden:
        with np.load(GOLDEN / f"{name}.npz") as file:
            return Golden({key: torch.from_numpy(np.array(file[key])) for key in file.files})

    return load


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


SignatureFactory = Callable[..., Signature]


@pytest.fixture
def signature() -> SignatureFactory:
    """A network's facts, made by hand: by default a ResNet of three stages of 4, 8, 16 channels on 8x8 images."""

    def make(
        model: str = "net",
        family: str = "resnet",
        channels: tuple[int, ...] = (4, 8, 16),
        sizes: tuple[int, ...] = (8, 4, 2),
        *,
        pre: bool = True,
        batch_norm: bool = True,
        dist_head: bool = False,
        classes: int = CLASSES,
    ) -> Signature:
        taps = {"stem": TapSignature((channels[0], sizes[0], sizes[0]), True)}
        for i, (c, n) in enumerate(zip(channels, sizes, strict=True), start=1):
            if pre:
                facts = (torch.linspace(0.5, 1.5, c), torch.linspace(-1, 1, c)) if batch_norm else None
                taps[f"stage{i}/pre"] = TapSignature((c, n, n), False, facts)
            taps[f"stage{i}"] = TapSignature((c, n, n), True)
        taps["embedding"] = TapSignature((channels[-1],), True)
        taps["logits"] = TapSignature((classes,), False)
        if dist_head:
            taps["dist_logits"] = TapSignature((classes,), False)
        return Signature(model, family, classes, taps, torch.randn(classes, channels[-1]))

    return make


@pytest.fixture
def data() -> DataSignature:
    """A training set of 60 images of ten classes."""
    return DataSignature(CLASSES, 60, torch.arange(60) % CLASSES)


@pytest.fixture
def output() -> Callable[..., Output]:
    """What a network of a signature might put out: random values, never negative where a tap says so."""

    def make(
        signature: Signature,
        reads: frozenset[str],
        batch: int = 6,
        *,
        dtype: torch.dtype = torch.float32,
        change: Callable[[Tensor], Tensor] = lambda values: values,
        grad: bool = False,
    ) -> Output:
        taps = {}
        for name in signature.select({*reads, "logits"}):
            tap = signature.taps[name]
            values = torch.randn(batch, *tap.shape)
            values = change(values.relu() if tap.nonnegative else values).to(dtype)
            taps[name] = values.requires_grad_() if grad else values
        return Output(taps["logits"], taps)

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch of ``size`` images with given or rising labels."""

    def make(size: int = 6, labels: Tensor | None = None, epoch: int = 0, **more: Any) -> Batch:
        labels = torch.arange(size) % CLASSES if labels is None else labels
        return Batch(
            labels=labels,
            indices=torch.arange(len(labels)),
            epoch=torch.tensor(epoch),
            progress=torch.tensor(0.0),
            generator=torch.Generator().manual_seed(0),
            **more,
        )

    return make


@pytest.fixture
def total() -> Callable[[Mapping[str, tuple[Tensor, float | Tensor]]], Tensor]:
    """The loss that terms stand for."""
    return lambda terms: torch.stack([value * weight for value, weight in terms.values()]).sum()


@pytest.fixture
def build() -> Callable[..., Method]:
    """A registered method by name, with its presets and the given settings, set up."""

    def make(name: str, student: Signature, teacher: Signature, data: DataSignature, **settings: Any) -> Method:
        [spec] = [spec for spec in METHODS if spec.name == name]
        module, _, attribute = spec.target.partition(":")
        cls = getattr(importlib.import_module(module), attribute)
        method: Method = cls(**{**REQUIRED.get(name, {}), **spec.presets, **settings})
        method.setup(student, teacher, data)
        return method

    return make
