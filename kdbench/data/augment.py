"""Augmentation of whole batches on their device, each image by its own chance.

Geometry and colour work on uint8 images (B, channels, H, W), then come normalisation, blanking (with zeros,
which are the channel mean by then) and mixing. Within each of these groups the recipe's order holds. Every
function takes the generator that it draws from; nothing here reads torch's global one, so that what else
a process computes moves no image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.recipe import (
    Augmentation,
    Crop,
    Cutmix,
    Cutout,
    Flip,
    Mixup,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Shift,
)

_ATTEMPTS = 10
"""Boxes tried per image before falling back, as in the papers' code."""


@dataclass(frozen=True)
class Mixed:
    """A mixed batch: images, the second images' classes (B,), and the first images' share (a scalar)."""

    images: Tensor
    labels: Tensor
    share: Tensor


@dataclass(frozen=True)
class Pipeline:
    """A recipe's augmentation, sorted by what it works on."""

    pixels: tuple[Augmentation, ...]
    """On uint8 images."""
    blanks: tuple[Cutout | RandomErasing, ...]
    """On normalised images."""
    mixes: tuple[Mixup | Cutmix, ...]
    """On normalised batches with their labels."""

    @classmethod
    def of(cls, augmentation: Sequence[Augmentation]) -> Pipeline:
        """Sort a recipe's list."""
        blanks = tuple(step for step in augmentation if isinstance(step, Cutout | RandomErasing))
        mixes = tuple(step for step in augmentation if isinstance(step, Mixup | Cutmix))
        pixels = tuple(step for step in augmentation if step not in blanks and step not in mixes)
        return cls(pixels, blanks, mixes)

    def change_pixels(self, images: Tensor, generator: torch.Generator, host: np.random.Generator) -> Tensor:
        """Crop, flip, shift, resize and recolour uint8 images (B, channels, H, W)."""
        for step in self.pixels:
            match step:
                case Crop():
                    images = crop(images, step.padding, generator)
                case Flip():
                    images = flip(images, step.p, generator)
                case Shift():
                    images = shift(images, step.pixels, generator)
                case RandomResizedCrop():
                    images = random_resized_crop(images, step.size, step.scale, generator)
                case RandAugment():
                    images = rand_augment(images, step.num_ops, step.magnitude, host)
        return images

    def blank(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Cut out and erase, in normalised images (B, channels, H, W)."""
        for step in self.blanks:
            if isinstance(step, Cutout):
                images = cutout(images, step.size, generator)
            else:
                images = random_erasing(images, step.p, generator)
        return images

    def mix(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, host: np.random.Generator
    ) -> Mixed | None:
        """Mixup or cutmix (one of those named, by chance); None where the recipe names neither."""
        if not self.mixes:
            return None
        step = self.mixes[host.integers(len(self.mixes))]
        return (mixup if isinstance(step, Mixup) else cutmix)(images, labels, step.alpha, generator, host)


class Normalize:
    """uint8 images (B, channels, H, W) to float32 in channels_last: (value / 255 - mean) / std."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """The normalised copy of ``images``."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self.mean).div_(self.std)


def crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad by ``padding`` zeros on every side and cut the original size out at random."""
    moved, inside = _move(images, _offsets(images, padding, generator))
    return moved * inside


def shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move by up to ``pixels`` in each direction, repeating the border."""
    return _move(images, _offsets(images, pixels, generator))[0]


def flip(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Mirror left to right with probability ``p``."""
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device, generator=generator) < p
    return torch.where(flipped, images.flip(-1), images)


def random_resized_crop(images: Tensor, size: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Cut a box with a share of the area within ``scale`` and resize it bilinearly to ``size`` pixels.

    The box's aspect ratio lies between 3/4 and 4/3 (Szegedy 2015, arXiv:1409.4842). There is no antialiasing:
    it is meant for boxes that are not larger than ``size``.
    """
    height, width = images.shape[-2:]
    top, left, box_height, box_width = _boxes(images, scale, (3 / 4, 4 / 3), generator)
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


def rand_augment(images: Tensor, num_ops: int, magnitude: int, host: np.random.Generator) -> Tensor:
    """``num_ops`` random operations on each image (Cubuk 2020, arXiv:1909.13719), by torchvision."""
    from torchvision.transforms import v2

    transform = v2.RandAugment(num_ops, magnitude)
    # torchvision's random transforms take no generator and draw from torch's global one on the CPU: it is
    # lent to them for this batch, seeded from the stream, and given back as it was. `torch.manual_seed`
    # would also re-seed every GPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(host.integers(2**63)))
        return torch.stack([transform(image) for image in images])


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Blank a square of ``size`` pixels; its centre lies anywhere, so that it may reach over the border."""
    batch, _, height, width = images.shape
    centre = torch.rand(2, batch, device=images.device, generator=generator)
    top = (centre[0] * height).floor() - size // 2
    left = (centre[1] * width).floor() - size // 2
    return images.masked_fill(_rectangles(images, top, left, top + size, left + size), 0)


def random_erasing(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Blank, with probability ``p``, a rectangle of 2 to 33 % of the area and aspect ratio 0.3 to 3.3."""
    top, left, height, width = _boxes(images, (0.02, 0.33), (0.3, 3.3), generator)
    erased = torch.rand(len(images), device=images.device, generator=generator) < p
    top, left = top.round(), left.round()
    bottom, right = top + (height.round() * erased), left + width.round()
    return images.masked_fill(_rectangles(images, top, left, bottom, right), 0)


def mixup(images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator, host: np.random.Generator) -> Mixed:
    """share * images + (1 - share) * permuted images, share from Beta(alpha, alpha) once a batch."""
    share = float(host.beta(alpha, alpha))
    others = torch.randperm(len(images), device=images.device, generator=generator)
    return Mixed(torch.lerp(images[others], images, share), labels[others], _scalar(share, images))


def cutmix(
    images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator, host: np.random.Generator
) -> Mixed:
    """Paste one rectangle of the permuted batch; the share is the area that is left of the first images.

    The rectangle has the share 1 - Beta(alpha, alpha) of the area before it is clipped at the border.
    """
    height, width = images.shape[-2:]
    side = math.sqrt(1 - host.beta(alpha, alpha))
    row, column = int(host.integers(height)), int(host.integers(width))
    half_height, half_width = int(side * height) // 2, int(side * width) // 2
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    others = torch.randperm(len(images), device=images.device, generator=generator)
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Mixed(pasted, labels[others], _scalar(share, images))


def _scalar(value: float, like: Tensor) -> Tensor:
    # Filling on the device, unlike copying there, does not wait for the device.
    return torch.full((), value, device=like.device)


def _offsets(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-reach, reach + 1, (2, len(images), 1), device=images.device, generator=generator)


def _move(images: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Images read ``offsets`` (2, B, 1) further down and right, border repeated, and where no border was."""
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
    """Mask (B, 1, H, W) of rectangles given by tensors (B,)."""
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
    ``ratio``'s. Several are drawn for each image at once, so that no value need be looked at on the host:
    the first that fits is taken, else the largest box in the middle whose ratio is allowed.
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
