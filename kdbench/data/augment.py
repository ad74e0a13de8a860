"""Augmentation of whole batches on their device, with separate random numbers for each image.

The order is: geometry and colour on uint8 images (B, channels, H, W), normalisation, blanking (with zeros, which
are then the channel mean), and mixing. Within each group the recipe's order applies. Every function draws from the
generators that it gets, never from torch's global one, so that images do not depend on other computations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator
from torch import Tensor

from kdbench.errors import DataError, in_words
from kdbench.isolation import contained
from kdbench.method import Fraction, Positive, PositiveInt


def _rising(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"must be two shares above 0 and up to 1 that do not descend, got {list(scale)}")
    return scale


_ATTEMPTS = 10
"""Boxes tried per image before the fallback, as in the papers' code."""


@dataclass(frozen=True)
class Mixed:
    """A mixed batch: images, the second images' classes (B,), and the first images' share (a scalar)."""

    images: Tensor
    labels: Tensor
    share: Tensor


@dataclass(frozen=True)
class Draws:
    """The random generators of an augmentation; it must use no other source of random numbers."""

    device: torch.Generator
    """A generator on the images' device: drawing from it does not wait for the device."""
    host: np.random.Generator


@dataclass(frozen=True)
class AugmentationStep:
    """One augmentation of a recipe, with its settings; see :class:`kdbench.hookspecs.AugmentationSpec`."""

    name: str
    acts_on: Literal["pixels", "size", "blanks", "mixes"]
    function: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    foreign: bool = False
    """Whether it comes from a third-party plugin."""

    def __call__(self, *batch: Tensor | Draws) -> Any:
        """Apply the augmentation to a batch.

        Raises:
            DataError: a third-party augmentation failed, or returned something of another type or shape.
        """
        if not self.foreign:
            return self.function(*batch, **self.settings)
        try:
            with contained("it"):
                result = self.function(*batch, **self.settings)
        except Exception as error:
            raise DataError(f"augmentation '{self.name}': {in_words(error)}") from error
        images = batch[0]
        assert isinstance(images, Tensor)
        given = result.images if isinstance(result, Mixed) else result
        fits = isinstance(given, Tensor) and (given.dtype, len(given)) == (images.dtype, len(images))
        if not fits or (self.acts_on != "size" and given.shape != images.shape):
            got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise DataError(f"augmentation '{self.name}': must return images of the input's dtype and shape, got {got}")
        return result


@dataclass(frozen=True)
class Pipeline:
    """A recipe's augmentations, grouped by their input."""

    pixels: tuple[AugmentationStep, ...]
    """On uint8 images; the one that sets the image size comes first."""
    blanks: tuple[AugmentationStep, ...]
    """On normalised images."""
    mixes: tuple[AugmentationStep, ...]
    """On normalised batches with their labels."""

    @classmethod
    def of(cls, steps: Sequence[AugmentationStep]) -> Pipeline:
        """Sort a recipe's steps."""
        pixels = tuple(step for step in steps if step.acts_on in {"pixels", "size"})
        return cls(
            pixels,
            tuple(step for step in steps if step.acts_on == "blanks"),
            tuple(step for step in steps if step.acts_on == "mixes"),
        )

    def change_pixels(self, images: Tensor, draws: Draws) -> Tensor:
        """Crop, flip, shift, resize and recolour uint8 images (B, channels, H, W)."""
        for step in self.pixels:
            images = step(images, draws)
        return images

    def blank(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply cutout and erasing to normalised images (B, channels, H, W)."""
        for step in self.blanks:
            images = step(images, draws)
        return images

    def mix(self, images: Tensor, labels: Tensor, draws: Draws) -> Mixed | None:
        """Apply mixup or cutmix (one of them at random if the recipe has both); None if it has neither."""
        if not self.mixes:
            return None
        step = self.mixes[draws.host.integers(len(self.mixes))]
        mixed: Mixed = step(images, labels, draws)
        return mixed


class Normalize:
    """uint8 images (B, channels, H, W) to float32 in channels_last: (value / 255 - mean) / std."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """The normalised copy of ``images``."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self.mean).div_(self.std)


def crop(images: Tensor, draws: Draws, *, padding: PositiveInt = 4) -> Tensor:
    """Pad by ``padding`` pixels of zeros on every side, then crop to the original size at a random position."""
    moved, inside = _move(images, _offsets(images, padding, draws.device))
    return moved * inside


def shift(images: Tensor, draws: Draws, *, pixels: PositiveInt = 1) -> Tensor:
    """Shift by up to ``pixels`` in each direction and repeat the border (for images without a background)."""
    return _move(images, _offsets(images, pixels, draws.device))[0]


def flip(images: Tensor, draws: Draws, *, p: Fraction = 0.5) -> Tensor:
    """Mirror left to right with probability ``p``."""
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device, generator=draws.device) < p
    return torch.where(flipped, images.flip(-1), images)


def random_resized_crop(
    images: Tensor,
    draws: Draws,
    *,
    size: PositiveInt = 224,
    scale: Annotated[tuple[float, float], AfterValidator(_rising)] = (0.08, 1.0),
) -> Tensor:
    """Crop a random area (share of the image within ``scale``) and resize it bilinearly to ``size`` pixels.

    The box's aspect ratio is between 3/4 and 4/3 (Szegedy 2015, arXiv:1409.4842). There is no antialiasing:
    it is meant for boxes that are not larger than ``size``.
    """
    height, width = images.shape[-2:]
    top, left, box_height, box_width = _boxes(images, scale, (3 / 4, 4 / 3), draws.device)
    zero = torch.zeros_like(top)
    theta = torch.stack(
        [
            torch.stack([box_width / width, zero, (2 * left + box_width) / width - 1], dim=1),
            torch.stack([zero, box_height / height, (2 * top + box_height) / height - 1], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [*images.shape[:2], size, size], align_corners=False)
    resized = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return resized.round_().to(torch.uint8)


def rand_augment(
    images: Tensor,
    draws: Draws,
    *,
    num_ops: Annotated[int, Gt(0), Le(100)] = 2,
    magnitude: Annotated[int, Ge(0), Le(30)] = 9,
) -> Tensor:
    """``num_ops`` random operations per image, with ``magnitude`` in 0..30 (Cubuk 2020, arXiv:1909.13719)."""
    from torchvision.transforms import v2

    return _image_by_image(v2.RandAugment(num_ops, magnitude), images, draws)


def torchvision_transform(
    images: Tensor, draws: Draws, *, transform: str, options: Mapping[str, Any] | None = None
) -> Tensor:
    """A transform of ``torchvision.transforms.v2`` on uint8 images, image by image; ``options`` are its arguments."""
    from torchvision.transforms import v2

    return _image_by_image(getattr(v2, transform)(**(options or {})), images, draws)


def _image_by_image(transform: Callable[[Tensor], Tensor], images: Tensor, draws: Draws) -> Tensor:
    # torchvision's random transforms draw from torch's global CPU generator: it is seeded for this batch
    # and restored afterwards. `torch.manual_seed` would also re-seed every GPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(draws.host.integers(2**63)))
        return torch.stack([transform(image) for image in images])


def cutout(images: Tensor, draws: Draws, *, size: PositiveInt = 8) -> Tensor:
    """Blank a square of ``size`` pixels (DeVries 2017, arXiv:1708.04552); it may extend beyond the border."""
    batch, _, height, width = images.shape
    centre = torch.rand(2, batch, device=images.device, generator=draws.device)
    top = (centre[0] * height).floor() - size // 2
    left = (centre[1] * width).floor() - size // 2
    return images.masked_fill(_rectangles(images, top, left, top + size, left + size), 0)


def random_erasing(images: Tensor, draws: Draws, *, p: Fraction = 0.25) -> Tensor:
    """Blank a random rectangle with probability ``p`` (Zhong 2020, arXiv:1708.04896).

    It has 2 to 33 % of the area, and an aspect ratio of 0.3 to 3.3.
    """
    top, left, height, width = _boxes(images, (0.02, 0.33), (0.3, 3.3), draws.device)
    erased = torch.rand(len(images), device=images.device, generator=draws.device) < p
    top, left = top.round(), left.round()
    bottom, right = top + (height.round() * erased), left + width.round()
    return images.masked_fill(_rectangles(images, top, left, bottom, right), 0)


def mixup(images: Tensor, labels: Tensor, draws: Draws, *, alpha: Positive = 0.8) -> Mixed:
    """Mix each batch with its permutation, share from Beta(alpha, alpha) (Zhang 2018, arXiv:1710.09412).

    If a recipe has both mixup and cutmix, one of them is chosen at random for each batch.
    """
    share = float(draws.host.beta(alpha, alpha))
    others = torch.randperm(len(images), device=images.device, generator=draws.device)
    return Mixed(torch.lerp(images[others], images, share), labels[others], _scalar(share, images))


def cutmix(images: Tensor, labels: Tensor, draws: Draws, *, alpha: Positive = 1.0) -> Mixed:
    """Paste a rectangle of the permuted batch (Yun 2019, arXiv:1905.04899).

    The rectangle has the share 1 - Beta(alpha, alpha) of the area before it is clipped at the border.
    """
    height, width = images.shape[-2:]
    host = draws.host
    side = math.sqrt(1 - host.beta(alpha, alpha))
    row, column = int(host.integers(height)), int(host.integers(width))
    half_height, half_width = int(side * height) // 2, int(side * width) // 2
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    others = torch.randperm(len(images), device=images.device, generator=draws.device)
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Mixed(pasted, labels[others], _scalar(share, images))


def _scalar(value: float, like: Tensor) -> Tensor:
    # Unlike a copy to the device, a fill does not wait for it.
    return torch.full((), value, device=like.device)


def _offsets(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-reach, reach + 1, (2, len(images), 1), device=images.device, generator=generator)


def _move(images: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Read images at ``offsets`` (2, B, 1) down and right with a repeated border; and a mask of pixels inside."""
    batch, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + offsets[0]
    columns = torch.arange(width, device=images.device) + offsets[1]
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    numbers = torch.arange(batch, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[
        numbers, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ]
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return moved.permute(0, 3, 1, 2), inside


def _rectangles(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Mask (B, 1, H, W) of rectangles with edges (B,)."""
    rows = torch.arange(images.shape[-2], device=images.device)[None, :, None]
    columns = torch.arange(images.shape[-1], device=images.device)[None, None, :]
    down = (rows >= top[:, None, None]) & (rows < bottom[:, None, None])
    across = (columns >= left[:, None, None]) & (columns < right[:, None, None])
    return (down & across)[:, None]


def _boxes(
    images: Tensor, area: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random boxes (top, left, height, width), each (B,) in pixels.

    The share of the area is uniform within ``area``, the logarithm of width / height uniform within
    ``ratio``'s. Several are drawn for each image at once, so that the host does not read any value: the first
    that fits is used, otherwise the largest centred box with an allowed ratio.
    """
    batch, _, height, width = images.shape
    low, high = math.log(ratio[0]), math.log(ratio[1])
    chance = torch.rand(4, _ATTEMPTS, batch, device=images.device, generator=generator)
    areas = (area[0] + (area[1] - area[0]) * chance[0]) * height * width
    ratios = torch.exp(low + (high - low) * chance[1])
    heights, widths = (areas / ratios).sqrt(), (areas * ratios).sqrt()
    fits = (heights <= height) & (widths <= width)
    first = fits.int().argmax(dim=0, keepdim=True)
    found = fits.any(dim=0)
    box_height = torch.where(found, heights.gather(0, first)[0], min(height, width / ratio[0]))
    box_width = torch.where(found, widths.gather(0, first)[0], min(width, height * ratio[1]))
    place = torch.where(found, chance[2:].gather(1, first.expand(2, 1, batch))[:, 0], 0.5)
    return place[0] * (height - box_height), place[1] * (width - box_width), box_height, box_width
