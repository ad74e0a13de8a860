"""The feed of a data set that is copied to the device once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kdbench.data.augment import AugmentationStep, Draws, Normalize, Pipeline
from kdbench.data.base import Arrays, Split
from kdbench.data.feed import EvaluationSplit, Minibatch, epoch_order, evaluation_batch, finish, no_such_split
from kdbench.recipe import batch_sizes
from kdbench.seeding import derive, generator


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the device: images (N, channels, H, W) of uint8 and labels (N,) of int64."""

    images: Tensor
    labels: Tensor


_placed: WeakKeyDictionary[Arrays, dict[torch.device, dict[str, DeviceSplit]]] = WeakKeyDictionary()


def place(arrays: Arrays, device: torch.device) -> dict[str, DeviceSplit]:
    """The splits on ``device``; the copy is shared while ``arrays`` exists."""
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
    """The feed of a data set on the device. See :class:`kdbench.data.feed.Feed`."""

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
        """Every training image once; order and augmentation depend only on seed, stage and epoch."""
        order = epoch_order(self.n_train, self._seed, stage, epoch).to(self._device)
        draws = Draws(
            generator(self._device, self._seed, "augmentation", stage, epoch),
            np.random.default_rng(derive(self._seed, "augmentation", stage, epoch)),
        )
        for indices in torch.split(order, self._sizes):
            labels = self.train.labels[indices]
            pixels = self._pipeline.change_pixels(self.train.images[indices], draws)
            yield finish(self._pipeline, self._normalize(pixels), labels, indices, draws)

    def evaluate(
        self, split: EvaluationSplit = "test", batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, channels, H, W) and labels (B,) of a split in fixed order, normalised, not augmented."""
        chosen = self._splits.get(split)
        if chosen is None:
            raise no_such_split(split)
        batch_size = batch_size or evaluation_batch(chosen.images.shape[1:], self._device)
        for start in range(0, len(chosen.labels), batch_size):
            batch = slice(start, start + batch_size)
            yield self._normalize(chosen.images[batch]), chosen.labels[batch]
