"""What a suite file may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from kdbench.recipe import Recipe, Table

Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


def _count_or_share(value: object) -> object:
    share = isinstance(value, float) and 0 < value < 1
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not (share or count):
        raise ValueError(f"must be a whole number of images or a share between 0 and 1, got {value!r}")
    return value


class Data(BaseModel):
    """``[data]``: the data set's name, how much of it is used, and the data set's own settings."""

    # The data set's own settings are checked by the data set.
    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    train_limit: Annotated[int, Field(gt=0)] | None = None
    """Use this many training images, stratified by class."""
    test_limit: Annotated[int, Field(gt=0)] | None = None
    validation: Annotated[int | float, BeforeValidator(_count_or_share)] = 0
    """Images cut from the training set: a number, or a share below 1; stratified by class."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The data set's own settings."""
        return dict(self.__pydantic_extra__ or {})


class Method(BaseModel):
    """One of ``[[methods]]``: a method's name, the label it is shown under, and its settings."""

    # The method's own settings are checked by the method.
    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    label: str = ""
    """Names the row in tables; needed where one method stands twice with different settings."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The method's own settings."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def shown(self) -> str:
        """The label, or else the name."""
        return self.label or self.name


class Pair(Table):
    """One of ``[[pairs]]``."""

    teacher: str
    student: str
    recipe: Mapping[str, Any] = {}
    """What differs from ``[recipe]`` for this pair's students."""
    methods: Mapping[str, Mapping[str, Any]] = {}
    """Settings of methods (by label) that differ for this pair."""

    @property
    def name(self) -> str:
        """``teacher:student``."""
        return f"{self.teacher}:{self.student}"


class Teacher(Table):
    """``[teachers.NAME]``: how the teacher that pairs call NAME comes about."""

    model: str = ""
    """The network, where NAME is not its own name."""
    weights: str | None = None
    """Given weights: a file, or what torchvision or timm call them. Otherwise the teacher is trained."""
    expected_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    """Test accuracy in percent that the teacher should reach."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """How many points it may be off."""
    seed: int = 0
    recipe: Mapping[str, Any] = {}
    """What differs from ``[recipe]`` when it is trained."""


class Suite(Table):
    """A whole suite file."""

    name: Slug
    question: Annotated[str, Field(min_length=1)]
    """What the suite finds out; the report opens with it."""
    cost: str = ""
    """What a full run costs, in words."""
    data: Data
    recipe: Recipe
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    teachers: Mapping[str, Teacher] = {}
    plugins: tuple[str, ...] = ()
    """Local plugin files, relative to the suite file."""
    checkpoint_every: Annotated[int, Field(gt=0)] = 10
    """Epochs between checkpoints."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"each seed once, got {list(seeds)}")
        return seeds

    @field_validator("methods")
    @classmethod
    def _labels_differ(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        labels = [method.shown for method in methods]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' stands twice; give each its own label")
        return methods

    @field_validator("pairs")
    @classmethod
    def _pairs_differ(cls, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        names = [pair.name for pair in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' stands twice")
        return pairs

    def teacher(self, name: str) -> Teacher:
        """The teacher that pairs call ``name``, with its model filled in."""
        teacher = self.teachers.get(name, Teacher())
        return teacher.model_copy(update={"model": teacher.model or name})
