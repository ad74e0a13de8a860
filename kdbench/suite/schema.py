"""What a suite file may say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kdbench.recipe import Recipe, Table
from kdbench.search import Search
from kdbench.words import shown

MAX_TRIALS = 50_000
BASELINES = ("none", "kd")
"""The usual ones: labels alone, and the loss that everybody knows."""


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError(f"must be printable, without spaces at its ends, got {shown(text)}")
    return text


def _text(text: str) -> str:
    if not all(c.isprintable() or c in "\n\t" for c in text):
        raise ValueError(f"must not contain control characters, got {shown(text)}")
    return text


Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
# Names become parts of folder names and cells of tables.
Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
Label = Annotated[str, Field(max_length=100), AfterValidator(_printable)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _count_or_share(value: object) -> object:
    share = isinstance(value, float) and 0 < value < 1
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not (share or count):
        raise ValueError(f"must be a whole number of images or a share between 0 and 1, got {shown(value)}")
    return value


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    # Two distributions may offer one name, but a table has one column of a name.
    twice = _first_repeated(name.rpartition(":")[2] for name in names)
    if twice is not None:
        raise ValueError(f"'{twice}' occurs twice")
    return names


Names = Annotated[tuple[Name, ...], AfterValidator(_each_once)]


def _file_or_files(value: object) -> object:
    given = value if isinstance(value, list | tuple) else [value]
    files = [file for file in given if isinstance(file, str)]
    if len(files) < len(given):
        raise ValueError(f"must be a string, or a list of strings (one for each seed), got {shown(value)}")
    if not files or not all(files):
        raise ValueError("must not be empty")
    twice = _first_repeated(files)
    if twice is not None:
        raise ValueError(f"{shown(twice)} occurs twice; a teacher of each seed needs its own weights")
    return tuple(files) if isinstance(value, list) else value


Weights = Annotated[str | tuple[str, ...], BeforeValidator(_file_or_files)]
TeacherSeeds = Literal["with_seeds", "single"]


def default_teacher_seeds(seeds: int) -> TeacherSeeds:
    """The value of ``teacher_seeds`` in a suite of so many seeds that does not give it."""
    return "with_seeds" if seeds > 1 else "single"


class Data(BaseModel):
    """``[data]``: the data set's name, how much of it is used, and the data set's own settings."""

    # The data set's own settings are checked by the data set.
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: Name
    """Its name in ``kdbench list datasets``."""
    train_limit: Annotated[int, Field(gt=0)] | None = None
    """Use this many training images, stratified by class."""
    test_limit: Annotated[int, Field(gt=0)] | None = None
    """Use this many test images, likewise."""
    validation: Annotated[int | float, BeforeValidator(_count_or_share)] = 0
    """Images held out from the training set: a number, or a share below 1; stratified by class."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The data set's own settings."""
        return dict(self.__pydantic_extra__ or {})


class MethodTable(BaseModel):
    """One of ``[[methods]]``: a method's name, the label it is shown under, and its settings."""

    # The method's own settings are checked by the method.
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: Name
    """Its name in ``kdbench list methods``."""
    label: Label = ""
    """Name of the row in tables; required if a method occurs twice with different settings."""
    lr_factor: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Multiplies the learning rates of the recipe (``lr`` and ``min_lr``) for this method."""

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

    teacher: Name
    """A network's name in ``kdbench list models``, or that of a table in ``[teachers]``."""
    student: Name
    """A network's name in ``kdbench list models``."""
    recipe: Mapping[str, Any] = {}
    """What differs from ``[recipe]`` for this pair's students."""
    methods: Mapping[str, Mapping[str, Any]] = {}
    """Settings of methods (by label) that differ for this pair."""

    @property
    def name(self) -> str:
        """``teacher:student``."""
        return f"{self.teacher}:{self.student}"


class TeacherTable(Table):
    """``[teachers.NAME]``: the model and the training of the teacher that pairs call NAME."""

    model: str = ""
    """The network, if its name is not NAME."""
    weights: Weights | None = None
    """Given weights: a file, or a name in torchvision or timm; or a list of these, one for each of ``seeds``. One file
    is the teacher of all seeds. By default, the teacher is trained."""
    expected_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    """Test accuracy in percent that the teacher should reach, with each seed."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """The allowed difference in percentage points."""
    seed: Seed = 0
    """Seed of its initial weights and of the order of its images, if ``teacher_seeds`` is ``"single"``."""
    recipe: Mapping[str, Any] = {}
    """What differs from ``[recipe]`` when it is trained."""


class Tune(BaseModel):
    """``[tune]``: what ``kdbench tune`` tries. ``[tune.LABEL]`` gives the values of a method's settings.

    ``weight = { low = 0.1, high = 10, log = true }`` is a range, ``loss = { choices = ["l1", "mse"] }`` a list.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, dict[str, Search]] = Field(init=False)

    trials: Annotated[int, Field(gt=0, le=1000)] = 16
    """Configurations of each method; the first has the settings of the suite."""
    pair: str = ""
    """The pair to tune on, ``teacher:student``; by default the first."""
    seed: Seed | None = None
    """The seed to tune with, one of ``seeds``; by default the first."""
    lr_factor: Search = Search(low=0.25, high=4.0, log=True)
    """Values of ``lr_factor``, which is tuned for every method, also for ``none``."""

    @field_validator("lr_factor")
    @classmethod
    def _factors_are_positive(cls, search: Search) -> Search:
        for value in search.values:
            if isinstance(value, bool | str) or not value > 0:
                raise ValueError(f"factors must be positive numbers, got {shown(value)}")
        return search

    @property
    def methods(self) -> Mapping[str, Mapping[str, Search]]:
        """Values by setting, by label of the method."""
        return dict(self.__pydantic_extra__ or {})


class TunedMethod(Table):
    """``[tuning.methods.LABEL]``: how a method was tuned."""

    trials: Annotated[int, Field(ge=0)]
    """Configurations that were trained."""
    without_result: Annotated[int, Field(ge=0)] = 0
    """How many of them diverged or failed."""
    space: Mapping[str, Search] = {}
    """The values that were tried."""
    default: Mapping[str, Any] = {}
    """The first configuration: the settings of the suite that was tuned."""
    chosen: Mapping[str, Any] = {}
    """The configuration with the highest validation accuracy."""
    default_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    """Validation accuracy of the default in percent; left out if it diverged or failed."""
    chosen_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    """Validation accuracy of the chosen configuration, likewise."""
    note: Annotated[str, AfterValidator(_text)] = ""
    """Why a method was not tuned."""


class Tuning(Table):
    """``[tuning]``: the record of ``kdbench tune``, for the report; it changes no trial."""

    pair: str
    """The pair that was tuned on."""
    seed: Seed
    """The seed that was tuned with."""
    trials: Annotated[int, Field(gt=0)]
    """Configurations of each method."""
    methods: Mapping[Name, TunedMethod] = {}
    """By label."""


class Engine(Table):
    """``[engine]``: how a GPU executes the steps. It may change the last bits of a result, which records it."""

    graphs: Literal["off", "auto"] = "off"
    """``auto`` replays steps from CUDA graphs where they can be recorded, and compares one with its step each epoch."""
    streams: bool = True
    """With graphs: each student has a stream of its own, so that the small kernels of several run at the same time."""
    deterministic: bool = False
    """Only algorithms that give the same bits in each run on the same machine; libraries then choose slower ones."""


class Suite(Table):
    """A whole suite file."""

    name: Slug
    """Name of the folders of results and report."""
    question: Annotated[str, Field(min_length=1), AfterValidator(_text)]
    """The question that the suite answers; the title of the report."""
    cost: Annotated[str, AfterValidator(_text)] = ""
    """The cost of a full run, as text."""
    data: Data
    """The data set."""
    recipe: Recipe
    """How students are trained, and teachers unless their tables differ."""
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]
    """Teachers and their students."""
    methods: Annotated[tuple[MethodTable, ...], Field(min_length=1)]
    """The losses to compare."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """One run of every pair and method per seed; the seed sets initial weights and the order of images."""
    teacher_seeds: Annotated[TeacherSeeds | None, Field(validate_default=True)] = None
    """``"with_seeds"``: each teacher is trained once with each seed, and a student of seed s learns from the teacher of
    seed s. Intervals then hold for a repetition of the study with other teachers. ``"single"``: students of all seeds
    learn from one teacher, and intervals hold for this teacher only. Default: ``"with_seeds"`` if there are several
    seeds, ``"single"`` if there is one."""
    teachers: Mapping[Name, TeacherTable] = {}
    """Settings of teachers; by default, a teacher is the network of its name, trained here."""
    plugins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Local plugin files, relative to the suite file."""
    metrics: Names = ()
    """Metrics of plugins that are measured beside the built-in ones, by their names in ``kdbench list metrics``."""
    sections: Names = ()
    """Sections of plugins that the report shows, by their names in ``kdbench list sections``."""
    figures: Names = ()
    """Figures of plugins that the report shows, by their names in ``kdbench list figures``."""
    baselines: Annotated[tuple[Name, ...], Field(min_length=1, max_length=3)] = BASELINES
    """Labels or methods that gains are given over; the first is the reference of verdicts and of relative times."""
    engine: Engine = Engine()
    """How steps are executed; not part of a trial's identity."""
    checkpoint_every: Annotated[int, Field(gt=0)] = 10
    """Epochs between checkpoints."""
    tune: Tune = Tune()
    """What ``kdbench tune`` tries."""
    tuning: Tuning | None = None
    """How the settings of this suite were tuned, as ``kdbench tune`` records it."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"each seed once, got {shown(list(seeds))}")
        return seeds

    @field_validator("teacher_seeds")
    @classmethod
    def _teacher_seeds_are_known(cls, given: TeacherSeeds | None, info: ValidationInfo) -> TeacherSeeds | None:
        # Stored with the plan: readers of results need not know the default.
        return given or default_teacher_seeds(len(info.data.get("seeds", ())))

    @field_validator("baselines")
    @classmethod
    def _baselines_differ(cls, baselines: tuple[str, ...]) -> tuple[str, ...]:
        twice = _first_repeated(baselines)
        if twice is not None:
            raise ValueError(f"'{twice}' occurs twice")
        return baselines

    @field_validator("methods")
    @classmethod
    def _labels_differ(cls, methods: tuple[MethodTable, ...]) -> tuple[MethodTable, ...]:
        twice = _first_repeated(method.shown for method in methods)
        if twice is not None:
            raise ValueError(f"'{twice}' occurs twice; give each its own label")
        return methods

    @field_validator("pairs")
    @classmethod
    def _pairs_differ(cls, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        twice = _first_repeated(pair.name for pair in pairs)
        if twice is not None:
            raise ValueError(f"'{twice}' occurs twice")
        return pairs

    @model_validator(mode="after")
    def _is_not_too_large(self) -> Suite:
        trials = len(self.pairs) * len(self.methods) * len(self.seeds)
        if trials > MAX_TRIALS:
            raise ValueError(f"defines {trials:,} trials; at most {MAX_TRIALS:,} are allowed; split the suite")
        return self

    def teacher(self, name: str) -> TeacherTable:
        """The teacher that pairs call ``name``, with its model filled in."""
        teacher = self.teachers.get(name, TeacherTable())
        return teacher.model_copy(update={"model": teacher.model or name})


def _first_repeated(names: Iterable[str]) -> str | None:
    return min((name for name, count in Counter(names).items() if count > 1), default=None)
