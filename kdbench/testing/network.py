"""A network under test: built at one image shape, as in the engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from kdbench.discovery import Offer
from kdbench.hookspecs import ModelSpec
from kdbench.models.base import Recorder, TappedModel, from_offer
from kdbench.seeding import derive
from kdbench.testing.bench import BATCH_SIZE, CLASSES

Shape = tuple[int, int, int]
"""(channels, height, width)."""
SHAPES: tuple[Shape, ...] = ((3, 32, 32), (3, 64, 64))
FURTHER_SHAPES: tuple[Shape, ...] = ((3, 224, 224),)
"""Used if a model supports none of :data:`SHAPES`."""


@dataclass(frozen=True)
class NetworkSubject:
    """A registered model, for images of one shape in ten classes."""

    offer: Offer[ModelSpec]
    image_shape: Shape

    @property
    def place(self) -> str:
        """The shape of its images: ``3x32x32``."""
        return "x".join(map(str, self.image_shape))

    def build(self) -> TappedModel:
        """The result of the builder."""
        return from_offer(self.offer, classes=CLASSES, image_shape=self.image_shape)

    def network(self, seed: int = 0, *, training: bool = False) -> TappedModel:
        """A new network with the weights of a seed, in the engine's memory format."""
        torch.manual_seed(derive(seed, "network"))
        network = self.build()
        return network.to(memory_format=torch.channels_last).train(training)

    def images(self, size: int = BATCH_SIZE, seed: int = 0) -> Tensor:
        """Random images (size, channels, height, width), in the memory format of the engine."""
        generator = torch.Generator().manual_seed(derive(seed, "images"))
        images = torch.randn(size, *self.image_shape, generator=generator)
        return images.contiguous(memory_format=torch.channels_last)


def run(network: TappedModel, images: Tensor, reads: Collection[str] | None = None) -> dict[str, Tensor]:
    """A forward pass that reads all taps or ``reads``; random layers (dropout) draw the same numbers each time."""
    torch.manual_seed(0)
    return network(images, reads=tuple(network.taps) if reads is None else reads)  # type: ignore[no-any-return]


@contextmanager
def recorded() -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Within the context, collect each tap that a :class:`Recorder` gets, and a copy made at that time."""
    copies: dict[str, tuple[Tensor, Tensor]] = {}
    usual = Recorder.__call__

    def record(recorder: Recorder, tap: str, value: Tensor) -> Tensor:
        copies[tap] = (value, value.detach().clone())
        return usual(recorder, tap, value)

    with mock.patch.object(Recorder, "__call__", record):
        yield copies
