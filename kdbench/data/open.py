"""Opens the feed that a data set needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdbench.data.augment import AugmentationStep, Normalize
from kdbench.data.base import Arrays, DataFacts, FileSplit
from kdbench.data.feed import Feed
from kdbench.data.resident import ResidentFeed, place
from kdbench.errors import DataError


def open_feed(
    arrays: Arrays,
    facts: DataFacts,
    *,
    augmentation: Sequence[AugmentationStep],
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Feed:
    """The feed of a data set for one seed. All feeds of the same ``arrays`` share one copy on the device.

    ``facts`` provides the image shape and the channel statistics for normalisation. Raises
    :class:`~kdbench.errors.DataError` for an augmentation that changes the images' size.
    """
    for step in augmentation:
        size = step.settings.get("size") if step.acts_on == "size" else None
        if size is not None and (size, size) != facts.image_shape[1:]:
            height, width = facts.image_shape[1:]
            raise DataError(
                f"recipe.augmentation: {step.name}.size: must be the data set's image size "
                f"({height}x{width}), so that training and test images have the same size, got {size}"
            )
    normalize = Normalize(*channel_statistics(facts, arrays), device)
    if isinstance(arrays.train, FileSplit):
        # Imported here: it imports torchvision, which is slow and which no other data set needs.
        from kdbench.data.stream import StreamedFeed

        return StreamedFeed(arrays, facts.image_shape, normalize, augmentation, batch_size, seed, device)
    return ResidentFeed(place(arrays, device), normalize, augmentation, batch_size, seed, device)


def channel_statistics(facts: DataFacts, arrays: Arrays) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The channel mean and std for normalisation, of values scaled to 0..1."""
    mean, std = facts.mean or arrays.mean, facts.std or arrays.std
    if mean is None or std is None:
        raise DataError("the data set has no channel mean and std; return them from facts() or load()")
    return mean, std
