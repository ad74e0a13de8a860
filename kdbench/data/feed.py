"""The feed of a cohort: batches of one data set, augmented on the device and the same for all its students.

Data order and augmentation draw from streams named by seed, stage and epoch, so that any epoch can be fed
again without the ones before it. The order is drawn on the CPU and is the same on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kdbench.data.augment import AugmentationStep, Draws, Normalize, Pipeline
from kdbench.data.base import Arrays, DataFacts, FileSplit, Split
from kdbench.errors import DataError
from kdbench.recipe import batch_sizes
from kdbench.seeding import derive, generator


@dataclass(frozen=True)
class Minibatch:
    """A training batch on the device.

    ``images``: (B, channels, H, W) float32, normalised, channels_last. ``labels`` and ``indices`` (of each
    image in the training split): (B,) int64. Under mixup or cutmix ``mixed_labels`` (B,) are the second
    images' classes and ``mix`` is the first images' share, a scalar.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    mixed_labels: Tensor | None = None
    mix: Tensor | None = None


EvaluationSplit = Literal["test", "validation"]


class Feed(Protocol):
    """Batches of a data set."""

    steps_per_epoch: int
    """Batches an epoch (:func:`kdbench.recipe.batch_sizes`)."""
    n_train: int
    n_evaluate: int
    """Images of the test split."""

    def epoch(self, stage: str, epoch: int) -> Iterator[Minibatch]:
        """Every training image once: order and augmentation depend on seed, stage and epoch alone."""

    def evaluate(self, split: EvaluationSplit = "test", batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, channels, H, W) and labels (B,) of a split in its order, normalised, not augmented."""


def open_feed(
    arrays: Arrays,
    facts: DataFacts,
    *,
    augmentation: Sequence[AugmentationStep],
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Feed:
    """The feed of a data set for one seed. All feeds of one ``arrays`` share its copy on the device.

    ``facts`` gives the image shape and the channel statistics for normalisation. Raises
    :class:`~kdbench.errors.DataError` for an augmentation that changes the images' size.
    """
    for step in augmentation:
        size = step.settings.get("size") if step.acts_on == "size" else None
        if size is not None and (size, size) != facts.image_shape[1:]:
            height, width = facts.image_shape[1:]
            raise DataError(
                f"recipe.augmentation: {step.name}.size: must be the data set's image size "
                f"({height}x{width}), so that training and test images are equally large, got {size}"
            )
    normalize = Normalize(*channel_statistics(facts, arrays), device)
    if isinstance(arrays.train, FileSplit):
        from kdbench.data.stream import StreamedFeed

        return StreamedFeed(arrays, facts.image_shape, normalize, augmentation, batch_size, seed, device)
    return ResidentFeed(_place(arrays, device), normalize, augmentation, batch_size, seed, device)


def channel_statistics(facts: DataFacts, arrays: Arrays) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The channel mean and std, of values scaled to 0..1, that images are normalised with."""
    mean, std = facts.mean or arrays.mean, facts.std or arrays.std
    if mean is None or std is None:
        raise DataError("the data set states no channel mean and std, neither in its facts nor when loaded")
    return mean, std


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the device: images (N, channels, H, W) of uint8 and labels (N,) of int64."""

    images: Tensor
    labels: Tensor


_placed: WeakKeyDictionary[Arrays, dict[torch.device, dict[str, DeviceSplit]]] = WeakKeyDictionary()


def _place(arrays: Arrays, device: torch.device) -> dict[str, DeviceSplit]:
    """The splits on ``device``, copied there once for as long as ``arrays`` lives."""
    devices = _placed.setdefault(arrays, {})
    if device not in devices:
        splits = {"train": arrays.train, "test": arrays.test, "validation": arrays.validation}
        devices[device] = {
            name: DeviceSplit(torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device))
            for name, split in splits.items()
            if isinstance(split, Split)
        }
    return devices[device]


class ResidentFeed:
    """The feed of a data set that lies on the device. See :class:`Feed`."""

    def __init__(
        self,
        splits: dict[str, DeviceSplit],
        normalize: Normalize,
        augmentation: Sequence[AugmentationStep],
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._splits = splits
        self.train = splits["train"]
        self._pipeline = Pipeline.of(augmentation)
        self._normalize = normalize
        self._seed = seed
        self._device = device
        self.n_train = len(self.train.labels)
        self.n_evaluate = len(splits["test"].labels)
        self._sizes = batch_sizes(self.n_train, batch_size)
        self.steps_per_epoch = len(self._sizes)

    def epoch(self, stage: str, epoch: int) -> Iterator[Minibatch]:
        """Every training image once: order and augmentation depend on seed, stage and epoch alone."""
        order = epoch_order(self.n_train, self._seed, stage, epoch).to(self._device)
        draws = Draws(
            generator(self._device, self._seed, "augmentation", stage, epoch),
            np.random.default_rng(derive(self._seed, "augmentation", stage, epoch)),
        )
        for indices in torch.split(order, self._sizes):
            labels = self.train.labels[indices]
            pixels = self._pipeline.change_pixels(self.train.images[indices], draws)
            yield finish(self._pipeline, self._normalize(pixels), labels, indices, draws)

    def evaluate(self, split: EvaluationSplit = "test", batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, channels, H, W) and labels (B,) of a split in its order, normalised, not augmented."""
        chosen = self._splits.get(split)
        if chosen is None:
            raise no_such_split(split)
        for start in range(0, len(chosen.labels), batch_size):
            batch = slice(start, start + batch_size)
            yield self._normalize(chosen.images[batch]), chosen.labels[batch]


def epoch_order(n_train: int, seed: int, stage: str, epoch: int) -> Tensor:
    """The order of an epoch: (n_train,) training indices, on the CPU."""
    return torch.randperm(n_train, generator=generator("cpu", seed, "order", stage, epoch))


def finish(pipeline: Pipeline, images: Tensor, labels: Tensor, indices: Tensor, draws: Draws) -> Minibatch:
    """Blank and mix normalised images, which is the same for every kind of feed."""
    images = pipeline.blank(images, draws)
    mixed = pipeline.mix(images, labels, draws)
    images = (images if mixed is None else mixed.images).contiguous(memory_format=torch.channels_last)
    if mixed is None:
        return Minibatch(images, labels, indices)
    return Minibatch(images, labels, indices, mixed.labels, mixed.share)


def no_such_split(split: str) -> DataError:
    """The error for evaluating on a split that was not cut."""
    return DataError(f"data.{split}: the data set has no {split} split; set it to a number of training images")
