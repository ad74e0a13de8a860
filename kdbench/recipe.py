"""A training recipe: how a network is trained, whatever the method. Pure data, no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Table(BaseModel):
    """Base of every table of a suite file: unknown keys are refused, numbers are finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Crop(Table):
    """Pad by ``padding`` pixels of zeros on every side, cut the original size out at random."""

    name: Literal["crop"]
    padding: Annotated[int, Field(gt=0)] = 4


class Flip(Table):
    """Mirror left to right with probability ``p``."""

    name: Literal["flip"]
    p: Annotated[float, Field(ge=0, le=1)] = 0.5


class Shift(Table):
    """Move by up to ``pixels`` in each direction, repeating the border (for images without a background)."""

    name: Literal["shift"]
    pixels: Annotated[int, Field(gt=0)] = 1


class RandomResizedCrop(Table):
    """Cut a random area (share of the image within ``scale``) and resize it to ``size`` pixels."""

    name: Literal["random_resized_crop"]
    size: Annotated[int, Field(gt=0)] = 224
    scale: tuple[float, float] = (0.08, 1.0)


class RandAugment(Table):
    """``num_ops`` random operations an image at ``magnitude`` of 0..30 (Cubuk 2020, arXiv:1909.13719)."""

    name: Literal["randaugment"]
    num_ops: Annotated[int, Field(gt=0)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class Cutout(Table):
    """Blank a square of ``size`` pixels (DeVries 2017, arXiv:1708.04552)."""

    name: Literal["cutout"]
    size: Annotated[int, Field(gt=0)] = 8


class RandomErasing(Table):
    """Blank a random rectangle with probability ``p`` (Zhong 2020, arXiv:1708.04896)."""

    name: Literal["random_erasing"]
    p: Annotated[float, Field(ge=0, le=1)] = 0.25


class Mixup(Table):
    """Mix each batch with its permutation, share from Beta(alpha, alpha) (Zhang 2018, arXiv:1710.09412).

    Where both mixup and cutmix are named, each batch draws one of them.
    """

    name: Literal["mixup"]
    alpha: Annotated[float, Field(gt=0)] = 0.8


class Cutmix(Table):
    """Paste a rectangle of the permuted batch (Yun 2019, arXiv:1905.04899)."""

    name: Literal["cutmix"]
    alpha: Annotated[float, Field(gt=0)] = 1.0


Augmentation = Annotated[
    Crop | Flip | Shift | RandomResizedCrop | RandAugment | Cutout | RandomErasing | Mixup | Cutmix,
    Field(discriminator="name"),
]


class Recipe(Table):
    """How a network is trained. Rates are per step, drops and warm-up in epochs."""

    epochs: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)] = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    drops: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """For ``steps``: the rate is multiplied by ``drop_factor`` after each of these epochs."""
    drop_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """The rate rises linearly, step by step, over the first epochs."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Where ``cosine`` ends."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate and save an exponential moving average of the student's weights."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth, for students that have it."""
    augmentation: tuple[Augmentation, ...] = ()
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """``auto``: bf16 autocast on a GPU, float32 on a CPU; ``tf32`` is for a GPU's convolutions.

    Losses are computed in float32 in any case, and nothing is measured in bf16.
    """
    selection: Literal["last", "validation"] = "last"
    """Which epoch is the result: the last, or the best on the validation split."""

    @model_validator(mode="after")
    def _steps_have_drops(self) -> Recipe:
        if self.drops and self.schedule != "steps":
            raise ValueError(f"drops belong to schedule = 'steps', not to '{self.schedule}'")
        if any(drop >= self.epochs for drop in self.drops):
            raise ValueError(f"drops must come before epoch {self.epochs}, got {list(self.drops)}")
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError(f"drops must rise, got {list(self.drops)}")
        return self


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """The batches of an epoch: the last, smaller one is kept, but a single image joins the batch before it.

    Nothing can be normalised over one image, nor compared with its neighbours.

    >>> batch_sizes(10, 4), batch_sizes(9, 4)
    ([4, 4, 2], [4, 5])
    """
    full, rest = divmod(images, batch_size)
    sizes = [batch_size] * full
    if rest == 1 and full:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes
