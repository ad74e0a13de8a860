"""A training recipe: how a network is trained, whatever the method. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from kdbench.words import shown


class Table(BaseModel):
    """Base of every table of a suite file: unknown keys are refused, numbers are finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Crop(Table):
    """Pad by ``padding`` pixels of zeros on every side, cut the original size out at random."""

    name: Literal["crop"]
    padding: Annotated[int, Field(gt=0)] = 4
    """Pixels; at most the image's side."""


class Flip(Table):
    """Mirror left to right with probability ``p``."""

    name: Literal["flip"]
    p: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The probability, for each image."""


class Shift(Table):
    """Move by up to ``pixels`` in each direction, repeating the border (for images without a background)."""

    name: Literal["shift"]
    pixels: Annotated[int, Field(gt=0)] = 1
    """The largest distance; at most the image's side."""


class RandomResizedCrop(Table):
    """Cut a random area (share of the image within ``scale``) and resize it to ``size`` pixels."""

    name: Literal["random_resized_crop"]
    size: Annotated[int, Field(gt=0)] = 224
    """Pixels; at most the image's side."""
    scale: tuple[float, float] = (0.08, 1.0)
    """The smallest and the largest share of the area, within 0..1."""

    @field_validator("scale")
    @classmethod
    def _is_a_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"must be two shares above 0 and up to 1 that do not descend, got {list(scale)}")
        return scale


class RandAugment(Table):
    """``num_ops`` random operations an image at ``magnitude`` of 0..30 (Cubuk 2020, arXiv:1909.13719)."""

    name: Literal["randaugment"]
    num_ops: Annotated[int, Field(gt=0, le=100)] = 2
    """Operations an image."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of each operation."""


class Cutout(Table):
    """Blank a square of ``size`` pixels (DeVries 2017, arXiv:1708.04552)."""

    name: Literal["cutout"]
    size: Annotated[int, Field(gt=0)] = 8
    """Side of the square in pixels; at most the image's side."""


class RandomErasing(Table):
    """Blank a random rectangle with probability ``p`` (Zhong 2020, arXiv:1708.04896)."""

    name: Literal["random_erasing"]
    p: Annotated[float, Field(ge=0, le=1)] = 0.25
    """The probability, for each image."""


class Mixup(Table):
    """Mix each batch with its permutation, share from Beta(alpha, alpha) (Zhang 2018, arXiv:1710.09412).

    Where both mixup and cutmix are named, each batch draws one of them.
    """

    name: Literal["mixup"]
    alpha: Annotated[float, Field(gt=0)] = 0.8
    """Both parameters of the Beta distribution."""


class Cutmix(Table):
    """Paste a rectangle of the permuted batch (Yun 2019, arXiv:1905.04899)."""

    name: Literal["cutmix"]
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Both parameters of the Beta distribution of the share of the area that remains."""


Augmentation = Annotated[
    Crop | Flip | Shift | RandomResizedCrop | RandAugment | Cutout | RandomErasing | Mixup | Cutmix,
    Field(discriminator="name"),
]


def _epoch_or_fraction(value: object) -> object:
    fraction = isinstance(value, float) and 0 < value < 1
    epoch = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not (fraction or epoch):
        raise ValueError(f"must be a whole number of epochs or a fraction between 0 and 1, got {shown(value)}")
    return value


AUGMENTATIONS: Mapping[str, type[Table]] = {
    get_args(table.model_fields["name"].annotation)[0]: table for table in get_args(get_args(Augmentation)[0])
}
"""The augmentations by name."""


class Recipe(Table):
    """How a network is trained. Rates are per step, drops and warm-up in epochs."""

    epochs: Annotated[int, Field(gt=0)]
    """Passes over the training images, in the main stage."""
    batch_size: Annotated[int, Field(gt=0)] = 64
    """Images a step; the last batch of an epoch may be smaller."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, or AdamW."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """The learning rate after the warm-up."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """For ``sgd``."""
    nesterov: bool = False
    """For ``sgd``: Nesterov's form of momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Of the student and of a method's adapters; ``adamw`` keeps it apart from the gradient."""
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    """How the rate falls: at ``drops``, along a cosine, or not at all."""
    drops: tuple[Annotated[int | float, BeforeValidator(_epoch_or_fraction)], ...] = ()
    """For ``steps``: the rate is multiplied by ``drop_factor`` after each of these epochs.

    Whole epochs, or fractions of ``epochs`` (all below 1), which are rounded down to whole epochs. Where a training
    is so short that two fractions give the same epoch, the rate drops once there; a fraction below one epoch is
    left out.
    """
    drop_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """For ``steps``."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """The rate rises linearly, step by step, over the first epochs."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Where ``cosine`` ends; at most ``lr``."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all classes, in the cross-entropy with the labels."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Scale gradients down to this norm, over all trained parameters."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate and save an exponential moving average of the student's weights."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth, for students that have it."""
    augmentation: tuple[Augmentation, ...] = ()
    """Changes of the training images, each a table with a ``name``."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """``auto``: bf16 autocast on a GPU, float32 on a CPU; ``tf32`` is for a GPU's convolutions.

    Losses are computed in float32 in any case, and nothing is measured in bf16.
    """
    selection: Literal["last", "validation"] = "last"
    """Which epoch is the result: the last, or the best on the validation split."""

    @model_validator(mode="after")
    def _rates_fit_together(self) -> Recipe:
        drops = list(self.drops)
        if drops and self.schedule != "steps":
            raise ValueError(f"drops belong to schedule = 'steps', not to '{self.schedule}'")
        if len({isinstance(drop, float) for drop in drops}) > 1:
            raise ValueError(f"drops must be all whole epochs or all fractions below 1, got {shown(drops)}")
        if any(drop >= self.epochs for drop in drops):
            raise ValueError(f"drops must come before epoch {self.epochs}, got {shown(drops)}")
        if drops != sorted(set(drops)):
            raise ValueError(f"drops must rise, got {shown(drops)}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must be at most lr, {self.lr:g}, got {self.min_lr:g}")
        return self

    @property
    def drop_epochs(self) -> tuple[int, ...]:
        """The drops in whole epochs.

        >>> Recipe(epochs=60, drops=(0.625, 0.75, 0.875)).drop_epochs
        (37, 45, 52)
        >>> Recipe(epochs=3, drops=(0.25, 0.75, 0.875)).drop_epochs
        (2,)
        """
        # What is a whole number but for rounding, as 0.29 * 100, is that number.
        epochs = {d if isinstance(d, int) else int(d * self.epochs + 1e-6) for d in self.drops}
        return tuple(sorted(epochs - {0}))

    def resolved(self) -> Recipe:
        """The same recipe with drops in whole epochs, so that equal trainings have equal recipes."""
        return self.model_copy(update={"drops": self.drop_epochs})


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
