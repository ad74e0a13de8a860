"""Tables of a suite: where an entry is written, and what is too large to be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import SuiteError
from kdbench.suite import load
from kdbench.suite.tables import Tables, key_of


@pytest.fixture
def problems(suite_file: Path) -> Callable[..., tuple[str, ...]]:
    """The problems of child.toml, with its folder left out; ``others`` are files beside it."""

    def find(content: str, *overrides: str, **others: str) -> tuple[str, ...]:
        from kdbench.discovery import discover
        from kdbench.resolve import RegistryCatalogue

        for name, text in {"child": content, **others}.items():
            suite_file.with_name(f"{name}.toml").write_text(text)
        child = suite_file.with_name("child.toml")
        with pytest.raises(SuiteError) as caught:
            load.load(child, load.read(child, overrides), RegistryCatalogue(discover()))
        return tuple(problem.replace(f"{suite_file.parent}/", "") for problem in caught.value.problems)

    return find


# ---- where an entry is written


def test_an_added_method_is_named_as_in_its_file(problems: Callable[..., tuple[str, ...]]) -> None:
    added = "[[add_methods]]\nname = 'vid'\n[[add_methods]]\nname = 'rkd'\n"
    wrong = "[[add_methods]]\nname = 'kd'\nlabel = 'soft'\ntemperatur = 2.0\n"
    unknown = "temperatur: unknown setting; did you mean 'temperature'?"
    assert problems(f"extends = 'small.toml'\n{added}{wrong}") == (f"child.toml: add_methods[2].{unknown}",)
    # The same of a file in the middle, and of what its child adds to it.
    middle = f"extends = 'small.toml'\n{added}{wrong}"
    assert problems("extends = 'middle.toml'\n[[add_methods]]\nname = 'pktt'\n", middle=middle) == (
        f"middle.toml: add_methods[2].{unknown}",
        "child.toml: add_methods[0].name: method 'pktt' is not registered; did you mean 'pkt'?",
    )
    # A list that the child replaces is the child's.
    child = "extends = 'middle.toml'\nmethods = [{name = 'kd'}, {name = 'kd', label = 'a', temperatur = 3}]\n"
    assert problems(child, middle=middle) == (f"child.toml: methods[1].{unknown}",)


def test_an_inherited_entry_is_named_by_the_file_that_holds_it(
    problems: Callable[..., tuple[str, ...]], suite_file: Path
) -> None:
    suite_file.write_text(suite_file.read_text().replace("temperature = 2.0", "temperature = -2.0"))
    suite_file.write_text(suite_file.read_text().replace("epochs = 10", "epochs = 10\nlr = 0"))
    negative = "temperature: must be positive, got -2.0"
    assert problems("extends = 'small.toml'\n[recipe]\nmomentum = 2\n[[add_methods]]\nname = 'vid'\n") == (
        "small.toml: recipe.lr: must be positive, got 0",
        "child.toml: recipe.momentum: must be less than 1, got 2",
        f"small.toml: methods[1].{negative}",
    )
    # What the command line changes is no fault of the base.
    assert problems("extends = 'small.toml'\n", "recipe.lr=-1", "methods.kd.temperature=2.0") == (
        "child.toml: recipe.lr: must be positive, got -1",
    )


def test_a_missing_key_is_named_by_the_file_that_was_asked_for(problems: Callable[..., tuple[str, ...]]) -> None:
    assert problems("extends = 'base.toml'\nquestion = '?'\n", base="name = 'x'\nseeds = [-1]\n") == (
        "child.toml: data: is required",
        "child.toml: recipe: is required",
        "child.toml: pairs: is required",
        "child.toml: methods: is required",
        "base.toml: seeds[0]: must be at least 0, got -1",
    )


@pytest.mark.parametrize(
    ("location", "key"),
    [
        (("methods", 1, "temperature"), "methods[1].temperature"),
        (("teachers", "timm:regnety_160.deit_in1k", "seed"), 'teachers."timm:regnety_160.deit_in1k".seed'),
        (("teachers", "torchvision:resnet34"), "teachers.torchvision:resnet34"),
        (("methods", "kd/keras"), "methods.kd/keras"),
        (("recipe", ""), 'recipe.""'),
        (("a\nb",), '"a\\nb"'),
        ((), ""),
    ],
)
def test_keys(location: tuple[int | str, ...], key: str) -> None:
    assert key_of(location) == key
    assert Tables({}, "x.toml").where(location) == (f"x.toml: {key}" if key else "x.toml")


# ---- too large


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[data]\nn = 9223372036854775808", "data.n: must fit 64 bits, got 9,223,372,036,854,775,808"),
        ("[data]\nn = -9223372036854775809", "data.n: must fit 64 bits, got -9,223,372,036,854,775,809"),
        ("n = 1" + "0" * 4000, "n: must fit 64 bits, got an integer of 13288 bits"),
        ("n = 1" + "0" * 5000, "contains an integer of thousands of digits; numbers must fit 64 bits"),
        ("n = [inf]", "n[0]: must be a finite number, got inf"),
        ("n = -1e20", "n: must be at most 1e+19 in magnitude, got -1e+20"),
        ("n = " + "[" * 30 + "]" * 30, "n[0][0]: is nested more than 20 levels deep"),
        ("n = " + "[" * 5000 + "]" * 5000, "is nested more than 20 levels deep"),
        ("n = [" + "0," * 1001 + "]", "n: has 1,001 entries; at most 1,000 are allowed"),
        ("n = '" + "a" * 10001 + "'", "n: has 10,001 characters; at most 10,000 are allowed"),
        ('n = "a\\u0000b"', "n: must not contain a NUL character, got 'a\\x00b'"),
        ("#" * 2**20 + "\n", "is larger than 1,048,576 bytes, the limit for a suite"),
        ("\n[a" + ".a" * 2001 + "]", "line 2 has more than 2,000 dots, the limit for a suite"),
    ],
)
def test_what_no_suite_needs_is_refused_before_any_work(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(content)
    with pytest.raises(SuiteError) as caught:
        load.read(path)
    separator = "" if problem.startswith(":") else ": "
    assert caught.value.problems == (f"{path}{separator}{problem}",)


def test_limits_are_reached_without_complaint(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"a = {2**63 - 1}\nb = {-(2**63)}\nc = 1e19\nd = {list(range(1000))}\ne = '{'a' * 10_000}'\n")
    tables = load.read(path)
    assert (tables["a"], tables["b"], tables["c"], len(tables["d"]), len(tables["e"])) == (
        2**63 - 1,
        -(2**63),
        1e19,
        1000,
        10_000,
    )


def test_a_byte_order_mark_is_read_over(suite_file: Path) -> None:
    plain = load.read(suite_file)
    suite_file.write_bytes(b"\xef\xbb\xbf" + suite_file.read_bytes())
    assert load.read(suite_file) == plain


def test_a_long_chain_of_files_is_refused(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.toml").write_text(f"extends = '{number + 1}.toml'\n")
    with pytest.raises(SuiteError) as caught:
        load.read(tmp_path / "0.toml")
    assert caught.value.problems == (
        f"{tmp_path / '21.toml'}: is in a chain of more than 20 files that extend each other",
    )


def test_very_many_problems_are_cut_short(suite_file: Path) -> None:
    recipe = "".join(f"k{number} = 1\n" for number in range(200))
    suite_file.write_text(suite_file.read_text().replace("[recipe]\n", f"[recipe]\n{recipe}"))
    with pytest.raises(SuiteError) as caught:
        load.load(suite_file, load.read(suite_file))
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1] == f"{suite_file}: has more problems; the first 50 are shown"
