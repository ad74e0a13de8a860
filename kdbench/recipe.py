"""A training recipe: how a network is trained, whatever the method. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from kdbench.words import shown


class Table(BaseModel):
    """Base of every table of a suite file: unknown keys are refused, numbers are finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Part(BaseModel):
    """What a recipe takes from plugins: its name, and its settings as further keys, which the part itself checks."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1, max_length=100)]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings given."""
        return dict(self.__pydantic_extra__ or {})


def _by_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _shortest(part: Part) -> str | dict[str, Any]:
    return part.model_dump(mode="json") if part.settings else part.name


Named = Annotated[Part, BeforeValidator(_by_name), PlainSerializer(_shortest)]
"""A part that is written as its name alone where no setting is given."""

OWN_KEYS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "optimizer": {"sgd": ("momentum", "nesterov")},
    "schedule": {"steps": ("drops", "drop_factor"), "cosine": ("min_lr",)},
}
"""Settings of built-in parts that are keys of the recipe: ``momentum = 0.9`` is short for
``optimizer = { name = "sgd", momentum = 0.9 }``."""


def _epoch_or_fraction(value: object) -> object:
    fraction = isinstance(value, float) and 0 < value < 1
    epoch = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not (fraction or epoch):
        raise ValueError(f"must be a whole number of epochs or a fraction between 0 and 1, got {shown(value)}")
    return value


T = TypeVar("T")
# Strict validation would ask for Python's tuples.
AsList = Annotated[T, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]


class Recipe(Table):
    """How a network is trained. Rates are per step, drops and warm-up in epochs."""

    epochs: Annotated[int, Field(gt=0)]
    """Passes over the training images, in the main stage."""
    batch_size: Annotated[int, Field(gt=0)] = 64
    """Images a step; the last batch of an epoch may be smaller."""
    optimizer: Named = Part(name="sgd")
    """Its name in ``kdbench list optimizers``, or a table with its name and settings."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """The learning rate after the warm-up."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """For ``sgd``."""
    nesterov: bool = False
    """For ``sgd``: Nesterov's form of momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Of the student and of a method's adapters; ``adamw`` keeps it apart from the gradient."""
    schedule: Named = Part(name="steps")
    """How the rate falls: its name in ``kdbench list schedules``, or a table with its name and settings."""
    drops: AsList[tuple[Annotated[int | float, BeforeValidator(_epoch_or_fraction)], ...]] = ()
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
    augmentation: AsList[tuple[Annotated[Part, BeforeValidator(_by_name)], ...]] = ()
    """Changes of the training images, each a name in ``kdbench list augmentations`` or a table with ``name``."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """``auto``: bf16 autocast on a GPU, float32 on a CPU; ``tf32`` is for a GPU's convolutions.

    Losses are computed in float32 in any case, and nothing is measured in bf16.
    """
    selection: Literal["last", "validation"] = "last"
    """Which epoch is the result: the last, or the best on the validation split."""
    evaluate_every: Annotated[int, Field(gt=0)] = 1
    """Epochs from one evaluation to the next, in the main stage; the last epoch is always evaluated.

    With ``selection = "validation"``, the result is the best of the evaluated epochs.
    """

    @model_validator(mode="before")
    @classmethod
    def _take_own_keys(cls, content: Any) -> Any:
        """Move settings that are keys of the recipe there, so that equal trainings have equal recipes."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        for key, parts in OWN_KEYS.items():
            part = content.get(key)
            if isinstance(part, dict) and isinstance(part.get("name"), str):
                own = {name: part[name] for name in parts.get(part["name"], ()) if name in part}
                content |= own | {key: {name: value for name, value in part.items() if name not in own}}
        return content

    @model_validator(mode="after")
    def _rates_fit_together(self) -> Recipe:
        drops = list(self.drops)
        if drops and self.schedule.name != "steps":
            raise ValueError(f"drops belong to schedule = 'steps', not to '{self.schedule.name}'")
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

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with every learning rate multiplied by ``factor``."""
        if factor == 1:
            return self  # equal to the last bit: it identifies a trial
        return self.model_copy(update={"lr": self.lr * factor, "min_lr": self.min_lr * factor})

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
