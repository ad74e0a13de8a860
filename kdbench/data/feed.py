"""The data feed of a cohort: batches of one data set, augmented on the device and identical for all students.

This module has the common part of all feeds. :mod:`~kdbench.data.resident` has the feed of data on the device,
:mod:`~kdbench.data.stream` that of files, and :mod:`~kdbench.data.open` selects one.

Data order and augmentation use random streams that depend on seed, stage and epoch, so that any epoch can be
reproduced without the earlier ones. The order is drawn on the CPU and is the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from kdbench.data.augment import Draws, Pipeline
from kdbench.errors import DataError
from kdbench.seeding import generator


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
    """Batches per epoch (:func:`kdbench.recipe.batch_sizes`)."""
    n_train: int
    n_evaluate: int
    """Number of images of the test split."""

    def epoch(self, stage: str, epoch: int) -> Iterator[Minibatch]:
        """Every training image once; order and augmentation depend only on seed, stage and epoch."""

    def evaluate(
        self, split: EvaluationSplit = "test", batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, channels, H, W) and labels (B,) of a split in fixed order, normalised, not augmented.

        ``batch_size`` None is :func:`evaluation_batch`.
        """


def evaluation_batch(image_shape: Sequence[int], device: torch.device) -> int:
    """Images of ``image_shape`` (channels, height, width) in a batch of an evaluation.

    500 on a CPU. On a GPU, where starting a batch takes most of the time, as many as 2,500 of 3x32x32 have values, but
    at least 500.
    """
    if device.type == "cpu":
        return 500
    return max(500, 2500 * 3 * 32 * 32 // math.prod(image_shape))


def epoch_order(n_train: int, seed: int, stage: str, epoch: int) -> Tensor:
    """The order of an epoch: (n_train,) training indices, on the CPU."""
    return torch.randperm(n_train, generator=generator("cpu", seed, "order", stage, epoch))


def finish(pipeline: Pipeline, images: Tensor, labels: Tensor, indices: Tensor, draws: Draws) -> Minibatch:
    """Blank and mix normalised images; the last step of every feed."""
    images = pipeline.blank(images, draws)
    mixed = pipeline.mix(images, labels, draws)
    images = (images if mixed is None else mixed.images).contiguous(memory_format=torch.channels_last)
    if mixed is None:
        return Minibatch(images, labels, indices)
    return Minibatch(images, labels, indices, mixed.labels, mixed.share)


def no_such_split(split: str) -> DataError:
    """The error for evaluation on a split that does not exist."""
    return DataError(f"data.{split}: the data set has no {split} split; set it to a number of training images")
