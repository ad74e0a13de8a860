"""The feed of a data set that stays on disk: worker processes decode and augment single images.

An image's augmentation depends only on seed, stage, epoch and its index, not on the worker or the number of
workers. Images are normalised, blanked and mixed on the device, as in any feed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from kdbench.data.augment import AugmentationStep, Draws, Normalize, Pipeline, random_resized_crop
from kdbench.data.base import Arrays, FileSplit
from kdbench.data.decode import read_image
from kdbench.data.feed import EvaluationSplit, Minibatch, epoch_order, evaluation_batch, finish, no_such_split
from kdbench.errors import DataError
from kdbench.recipe import batch_sizes
from kdbench.seeding import derive, generator

CENTRE = 0.875
"""Side of the centre crop for evaluation, as a share of the resized image's shorter side."""


class StreamedFeed:
    """The feed of a data set whose splits are files. See :class:`kdbench.data.feed.Feed`."""

    def __init__(
        self,
        arrays: Arrays,
        image_shape: tuple[int, int, int],
        normalize: Normalize,
        augmentation: Sequence[AugmentationStep],
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._splits: dict[str, Any] = {
            "train": arrays.train,
            "test": arrays.test,
            "validation": arrays.validation,
        }
        self._pipeline = Pipeline.of(augmentation)
        self._normalize = normalize
        self._seed = seed
        self._device = device
        self._size = image_shape[-1]
        self._loaders: dict[str, _Loader] = {}
        self.n_train = len(arrays.train.labels)
        self.n_evaluate = len(arrays.test.labels)
        self._sizes = batch_sizes(self.n_train, batch_size)
        self.steps_per_epoch = len(self._sizes)

    def epoch(self, stage: str, epoch: int) -> Iterator[Minibatch]:
        """Every training image once; order and augmentation depend only on seed, stage and epoch."""
        order = epoch_order(self.n_train, self._seed, stage, epoch)
        draws = Draws(
            generator(self._device, self._seed, "augmentation", stage, epoch),
            np.random.default_rng(derive(self._seed, "augmentation", stage, epoch)),
        )
        for pixels, labels, indices in self._batches("train", order, self._sizes, (stage, epoch)):
            yield finish(self._pipeline, self._normalize(pixels), labels, indices, draws)

    def evaluate(
        self, split: EvaluationSplit = "test", batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, channels, H, W) and labels (B,) of a split in fixed order: centre crops of the resized images."""
        if self._splits[split] is None:
            raise no_such_split(split)
        order = torch.arange(len(self._splits[split].labels))
        batch_size = batch_size or evaluation_batch((3, self._size, self._size), self._device)
        for pixels, labels, _ in self._batches(split, order, batch_size, None):
            yield self._normalize(pixels), labels

    def _batches(
        self, split: str, order: Tensor, sizes: int | list[int], moment: tuple[str, int] | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """uint8 images, labels and indices on the device, in the given order."""
        files: FileSplit = self._splits[split]
        if split not in self._loaders:
            pipeline = self._pipeline if split == "train" else Pipeline.of(())
            self._loaders[split] = _Loader(_Images(files, self._size, pipeline, self._seed), self._device)
        labels = torch.from_numpy(files.labels)[order]
        start = 0
        for images in self._loaders[split].read(torch.split(order, sizes), moment):
            if isinstance(images, DataError):
                raise images
            batch = slice(start, start + len(images))
            start = batch.stop
            yield (
                images.to(self._device, non_blocking=True),
                labels[batch].to(self._device, non_blocking=True),
                order[batch].to(self._device, non_blocking=True),
            )


@dataclass(frozen=True)
class _Request:
    """An image to read: its index, and the (stage, epoch) of its augmentation; None for evaluation."""

    index: int
    moment: tuple[str, int] | None


class _Images(Dataset[Tensor | DataError]):
    """Reads images in worker processes: uint8 (3, size, size)."""

    def __init__(self, files: FileSplit, size: int, pipeline: Pipeline, seed: int) -> None:
        self.files = files
        self.size = size
        self.seed = seed
        crops = [step for step in pipeline.pixels if step.acts_on == "size"]
        self.crop = crops[0] if crops else None
        # The crop sets the image size: it is applied first, at any position in the list.
        self.pipeline = replace(pipeline, pixels=tuple(step for step in pipeline.pixels if step not in crops))

    def __getitem__(self, request: _Request) -> Tensor | DataError:
        """The image, or an error. It is returned because a worker would add its traceback to a raised error."""
        try:
            image = read_image(self.files.root / self.files.files[request.index])
        except DataError as error:
            return error
        if request.moment is None:
            return self._centre(image)
        seed = derive(self.seed, "augmentation", *request.moment, request.index)
        if self.crop is None:
            pixels = self._centre(image)
        elif self.crop.function is not random_resized_crop:
            draws = Draws(torch.Generator().manual_seed(derive(seed, "size")), np.random.default_rng(seed))
            pixels = self.crop(v2.functional.pil_to_tensor(image)[None], draws)[0]
        else:
            # torchvision's random transforms draw from torch's global generator, which may be that of the
            # training process: it is seeded for this image and restored afterwards.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                cropped = v2.RandomResizedCrop(self.size, self.crop.settings["scale"])(image)
            pixels = v2.functional.pil_to_tensor(cropped)
        draws = Draws(torch.Generator().manual_seed(derive(seed, "pixels")), np.random.default_rng(seed))
        return self.pipeline.change_pixels(pixels[None], draws)[0]

    def _centre(self, image: Any) -> Tensor:
        resized = v2.functional.resize(image, [round(self.size / CENTRE)])
        centre: Tensor = v2.functional.pil_to_tensor(v2.functional.center_crop(resized, [self.size]))
        return centre


@dataclass
class _Requests:
    """The batches of requests for the loader's workers; replaced for each epoch."""

    batches: Sequence[Tensor] = ()
    moment: tuple[str, int] | None = None

    def __iter__(self) -> Iterator[list[_Request]]:
        for batch in self.batches:
            yield [_Request(index, self.moment) for index in batch.tolist()]


class _Loader:
    """A data loader whose workers exist as long as the feed, and get new requests each epoch."""

    def __init__(self, images: _Images, device: torch.device) -> None:
        self.requests = _Requests()
        self.loader = DataLoader(
            images,
            batch_sampler=self.requests,
            num_workers=images.files.workers,
            persistent_workers=images.files.workers > 0,
            collate_fn=_collate,
            worker_init_fn=_leave_signals_to_parent,
            pin_memory=device.type == "cuda",
            # A separate generator: each iteration draws from it, which would change torch's global stream.
            generator=torch.Generator(),
        )

    def read(self, batches: Sequence[Tensor], moment: tuple[str, int] | None) -> Iterator[Tensor | DataError]:
        """The images at the batches' indices."""
        self.requests.batches = batches
        self.requests.moment = moment
        yield from self.loader


def _leave_signals_to_parent(worker: int) -> None:
    """Make this worker end on SIGTERM only if its parent sent it.

    A scheduler sends it to every process of a job, but the training process needs its workers to finish the epoch.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parents_signal, daemon=True).start()


def _end_with_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _collate(images: list[Tensor | DataError]) -> Tensor | DataError:
    """A batch of images, or the first error among them."""
    errors = [image for image in images if isinstance(image, DataError)]
    return errors[0] if errors else torch.stack([image for image in images if isinstance(image, Tensor)])
