"""Settings read from source and by import, checked and explained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, Field, ValidationError

from kdbench.discovery import discover
from kdbench.discovery.settings import (
    Setting,
    explain,
    load_target,
    read_by_import,
    read_statically,
    resolve,
    source_of,
)
from kdbench.errors import PluginError
from kdbench.method import Fraction, Method, NonNegative, NonNegativeInt, Positive, PositiveInt

# ---- two ways of reading

OFFERS = {
    f"{kind} {offer.spec.name}": offer
    for registry in [discover()]
    for kind, offers in (("method", registry.methods), ("model", registry.models), ("data", registry.datasets))
    for offer in offers
}


@pytest.mark.parametrize("name", OFFERS)
def test_source_and_import_tell_the_same(name: str) -> None:
    offer = OFFERS[name]
    static, imported = read_statically(offer.spec.target), read_by_import(offer.load())
    if static is None:
        # Only an import can tell what a class inherits.
        assert isinstance(offer.load(), type)
        assert len(offer.load().__mro__) > 2
        return
    assert static.settings == imported.settings
    assert static.summary == imported.summary
    assert static.summary
    for key, value in static.attributes.items():
        if value is not None:  # else settings decide: the class alone does not tell
            assert imported.attributes.get(key, value) == value
    for key in ("paper", "reads", "student_reads", "teacher_reads", "needs_teacher"):
        if key not in static.attributes and key in imported.attributes:
            assert imported.attributes[key] == getattr(Method, key), f"{key} is set, but not as a literal"


def test_every_first_party_method_is_read_without_an_import() -> None:
    targets = [offer.spec.target for name, offer in OFFERS.items() if name.startswith("method ")]
    program = (
        "import sys\n"
        "from kdbench.discovery.settings import read_statically\n"
        f"assert all(read_statically(target) is not None for target in {targets!r})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


SOURCE = '''
from typing import Annotated, Literal, Optional

from annotated_types import Ge, Gt, Le

from kdbench import method
from kdbench.method import Fraction, Method, NonNegative, NonNegativeInt, Positive, PositiveInt

class Loss(Method):
    """First line.

    Second line.
    """

    paper = "Somebody 2020"
    reads = frozenset({"logits", "stage*"})
    student_reads: frozenset[str] | None = frozenset()
    computed = 1 + len("x")

    def __init__(
        self,
        positional=3,
        *,
        required: int,
        a: Positive = 4.0,
        b: NonNegative = 0,
        c: Fraction = 0.5,
        d: PositiveInt = 1,
        e: NonNegativeInt = 0,
        f: Literal["soft", "hard", "a, b"] = "soft",
        g: Positive | None = None,
        h: Optional[Fraction] = None,
        i: Annotated[int, Gt(0)] = 1,
        j: Annotated[float, Ge(0), Le(30)] | None = None,
        k: bool = False,
        l: tuple[float, ...] = (1.0, -2.0),
        m: method.Positive = 1e-3,
        n: str = "x",
        o: "Positive" = 1.0,
    ) -> None:
        super().__init__()
'''
SETTINGS = {
    "required": Setting("(required)", "int"),
    "a": Setting(4.0, "float > 0"),
    "b": Setting(0, "float >= 0"),
    "c": Setting(0.5, "float in 0..1"),
    "d": Setting(1, "int > 0"),
    "e": Setting(0, "int >= 0"),
    "f": Setting("soft", "'soft' | 'hard' | 'a, b'"),
    "g": Setting(None, "float > 0 | None"),
    "h": Setting(None, "float in 0..1 | None"),
    "i": Setting(1, "int > 0"),
    "j": Setting(None, "float in 0..30 | None"),
    "k": Setting(False, "bool"),
    "l": Setting((1.0, -2.0), "tuple[float, ...]"),
    "m": Setting(0.001, "float > 0"),
    "n": Setting("x", "str"),
    "o": Setting(1.0, "float > 0"),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module to import; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> str:
        name = f"settings_of_{tmp_path.name}_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


@pytest.mark.parametrize("first", ["", "from __future__ import annotations\n"], ids=["evaluated", "postponed"])
def test_settings_in_words(module: Callable[[str], str], first: str) -> None:
    target = f"{module(first + SOURCE)}:Loss"
    static = read_statically(target)
    assert static is not None
    imported = read_by_import(load_target(target))
    assert dict(static.settings) == SETTINGS
    assert dict(imported.settings) == SETTINGS
    assert static.summary == imported.summary == "First line."
    assert dict(static.attributes) == {
        "paper": "Somebody 2020",
        "reads": frozenset({"logits", "stage*"}),
        "student_reads": frozenset(),
    }


def test_taps_that_settings_decide_are_not_told(module: Callable[[str], str]) -> None:
    name = module(
        "from kdbench.method import Method\n"
        "class Chooses(Method):\n"
        "    reads = frozenset({'logits'})\n"
        "    def __init__(self, *, tap: str = 'stem'):\n"
        "        self.reads = frozenset({tap})\n"
    )
    static = read_statically(f"{name}:Chooses")
    assert static is not None
    assert static.attributes["reads"] is None


def test_what_the_source_does_not_tell(module: Callable[[str], str]) -> None:
    name = module(
        "from kdbench_methods.kd import KD\n"
        "class Inherits(KD):\n    pass\n"
        "class Overrides(KD):\n    def __init__(self, *, a: int = 1):\n        super().__init__()\n"
        "Alias = KD\n"
        "def build(*, classes: int, depth: int = 8):\n    '''A network.'''\n"
    )
    # What they inherit (the paper, say) stands elsewhere.
    assert read_statically(f"{name}:Inherits") is None
    assert read_statically(f"{name}:Overrides") is None
    assert read_statically(f"{name}:Alias") is None
    assert read_statically(f"{name}:Missing") is None
    assert read_statically("nowhere.at.all:Thing") is None
    built = read_statically(f"{name}:build")
    assert built is not None
    assert built.summary == "A network."
    assert dict(built.settings) == {"classes": Setting("(required)", "int"), "depth": Setting(8, "int")}
    assert read_statically(f"{module('class Broken(:')}:Broken") is None


def test_source_of_imports_nothing(module: Callable[[str], str]) -> None:
    name = module("raise RuntimeError('imported')")
    path = source_of(f"{name}:Thing")
    assert path is not None
    assert path.name == f"{name}.py"
    assert name not in sys.modules
    assert source_of("sys:path") is None
    assert source_of("nowhere.at.all:Thing") is None


def test_nok_load_target(module: Callable[[str], str]) -> None:
    name = module("A = 1")
    assert load_target(f"{name}:A") == 1
    with pytest.raises(PluginError) as caught:
        load_target(f"{name}:B")
    assert str(caught.value) == f"{name}:B: module '{name}' has no 'B'"
    # An AttributeError inside the module is its own, not a missing name.
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        load_target(f"{module('import os; os.nothing')}:A")


# ---- values


class Thing:
    """Something with settings."""

    def __init__(
        self,
        *,
        positive: Positive = 1.0,
        non_negative: NonNegative = 0.0,
        fraction: Fraction = 0.5,
        count: PositiveInt = 1,
        index: NonNegativeInt = 0,
        kind: Literal["soft", "hard"] = "soft",
        size: Annotated[int, Gt(1), Le(9)] | None = None,
        flag: bool = False,
        pair: tuple[int, int] = (1, 2),
        rates: tuple[float, ...] = (),
        parts: list[dict[str, Any]] | None = None,
        word: str = "x",
        anything: Any = None,
        late: Optional[Annotated[float, Ge(0)]] = None,  # noqa: UP045 - users write it
    ) -> None:
        pass


OK: list[tuple[str, Any, Any]] = [
    ("positive", 0.5, 0.5),
    ("positive", 3, 3.0),
    ("fraction", 0, 0.0),
    ("fraction", 1, 1.0),
    ("count", 7, 7),
    ("kind", "hard", "hard"),
    ("size", 9, 9),
    ("flag", True, True),
    ("pair", [3, 4], (3, 4)),
    ("rates", [1, 2.5], (1.0, 2.5)),
    ("parts", [{"name": "kd"}], [{"name": "kd"}]),
    ("anything", {"a": [1]}, {"a": [1]}),
    ("late", 0, 0.0),
]
NOK: list[tuple[str, Any, str]] = [
    ("positive", 0.0, "must be positive, got 0.0"),
    ("positive", -2, "must be positive, got -2"),
    ("positive", "4", "must be a number, got '4'"),
    ("positive", True, "must be a number, got True"),
    ("positive", float("nan"), "must be positive, got nan"),
    ("positive", [1.0], "must be a number, got [1.0]"),
    ("non_negative", -0.1, "must be at least 0, got -0.1"),
    ("fraction", 1.5, "must be at most 1, got 1.5"),
    ("fraction", -1, "must be at least 0, got -1"),
    ("count", 0, "must be positive, got 0"),
    ("count", 2.5, "must be a whole number, got 2.5"),
    ("count", 2.0, "must be a whole number, got 2.0"),
    ("index", -1, "must be at least 0, got -1"),
    ("kind", "sort", "must be 'soft' or 'hard', got 'sort'"),
    ("size", 1, "must be greater than 1, got 1"),
    ("size", 10, "must be at most 9, got 10"),
    ("flag", 1, "must be true or false, got 1"),
    ("flag", "yes", "must be true or false, got 'yes'"),
    ("pair", [1, 2, 3], "takes at most 2, got [1, 2, 3]"),
    ("pair", 1, "must be a list, got 1"),
    ("rates", [1, "x"], "must be a number, got 'x'"),
    ("parts", [1], "must be a table, got 1"),
    ("parts", "kd", "must be a list, got 'kd'"),
    ("word", 3, "must be a string, got 3"),
    ("temprature", 3, "unknown setting; known: " + ", ".join(sorted(read_by_import(Thing).settings))),
    ("positiv", 3, "unknown setting; did you mean 'positive'?"),
]


@pytest.mark.parametrize(("key", "given", "value"), OK)
def test_ok_settings(key: str, given: Any, value: Any) -> None:
    settings, problems = resolve(Thing, {key: given})
    assert problems == []
    assert settings[key] == value
    assert type(settings[key]) is type(value)
    assert settings.keys() == read_by_import(Thing).settings.keys()


@pytest.mark.parametrize(("key", "given", "problem"), NOK)
def test_nok_settings(key: str, given: Any, problem: str) -> None:
    assert resolve(Thing, {key: given})[1] == [(key, problem)]


def test_dates_are_no_numbers() -> None:
    from tomllib import loads

    assert resolve(Thing, loads("positive = 2020-01-02"))[1] == [("positive", "must be a number, got '2020-01-02'")]


def test_all_problems_at_once() -> None:
    _, problems = resolve(Thing, {"positive": 0, "count": 0, "colour": "red"})
    assert [key for key, _ in problems] == ["colour", "positive", "count"]


def test_defaults_and_required_settings() -> None:
    def build(*, classes: int, depth: PositiveInt, width: float = 1.0, late: object = object) -> None:
        pass

    settings, problems = resolve(build, {"depth": 8}, supplied=frozenset({"classes"}))
    assert settings == {"depth": 8, "width": 1.0, "late": object}
    assert problems == []
    assert resolve(build, {})[1] == [("classes", "is required"), ("depth", "is required")]


def test_a_class_without_settings() -> None:
    class Plain(Method):
        pass

    assert resolve(Plain, {}) == ({}, [])
    assert resolve(Plain, {"a": 1})[1] == [("a", "unknown setting; it has no settings")]


def test_annotations_that_cannot_be_checked_are_passed_over() -> None:
    class Unchecked:
        def __init__(self, *, network: Method = None, scale: float = 1.0) -> None:  # type: ignore[assignment]
            pass

    assert resolve(Unchecked, {"network": 3, "scale": "x"})[1] == [("scale", "must be a number, got 'x'")]


def test_annotations_that_cannot_be_read_are_the_plugins_fault(module: Callable[[str], str]) -> None:
    name = module("class Lost:\n    def __init__(self, *, a: 'Nowhere' = 1): pass\n")
    with pytest.raises(PluginError) as caught:
        resolve(load_target(f"{name}:Lost"), {"a": 1})
    assert str(caught.value) == f"{name}:Lost: annotations cannot be read: name 'Nowhere' is not defined"


# ---- words


class Left(BaseModel):
    name: Literal["left"]


class Right(BaseModel):
    name: Literal["right"]


class Model(BaseModel, extra="forbid"):
    a: Annotated[float, Field(ge=0, lt=1)] = 0.0
    b: Annotated[float, Field(gt=0.5, le=1)] = 1.0
    finite: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    text: Annotated[str, Field(min_length=1, pattern="^[a-z]*$")] = "a"
    many: Annotated[tuple[int, ...], Field(min_length=2)] = (1, 2)
    side: Annotated[Left | Right, Field(discriminator="name")] | None = None
    table: dict[str, int] = {}
    inner: Left | None = None
    long: Literal["alpha one", "alpha two", "alpha three", "alpha four", "alpha five"] = "alpha one"


EXPLAINED: list[tuple[dict[str, Any], str]] = [
    ({"a": -1}, "must be at least 0, got -1"),
    ({"a": 1}, "must be less than 1, got 1"),
    ({"b": 0.5}, "must be greater than 0.5, got 0.5"),
    ({"b": 2}, "must be at most 1, got 2"),
    ({"finite": float("inf")}, "must be a finite number, got inf"),
    ({"text": ""}, "must not be empty"),
    ({"text": "A b"}, "must match pattern '^[a-z]*$', got 'A b'"),
    ({"many": [1]}, "needs at least 2, got [1]"),
    ({"side": {"name": "lift"}}, "unknown name 'lift'; did you mean 'left'?"),
    ({"side": {}}, "needs a name"),
    ({"table": 3}, "must be a table, got 3"),
    ({"inner": 3}, "must be a table, got 3"),
    ({"inner": {}}, "is required"),
    ({"colour": 1}, "unknown key"),
    (
        {"long": "alpha too"},
        "must be 'alpha one', 'alpha two', 'alpha three', 'alpha four' or 'alpha five', got 'alpha too'; "
        "did you mean 'alpha two'?",
    ),
]


@pytest.mark.parametrize(("given", "words"), EXPLAINED, ids=[words for _, words in EXPLAINED])
def test_explain(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(given)
    assert [explain(detail) for detail in caught.value.errors()] == [words]


def test_positional_arguments_are_no_settings_and_the_remedy_is_said() -> None:
    class Positional:
        def __init__(self, weight: float = 1.0) -> None: ...

    _, problems = resolve(Positional, {"weight": 2.0})
    assert problems == [
        ("weight", "unknown setting; settings are keyword-only: write def __init__(self, *, weight=...)")
    ]
