"""Reading a suite file: where it is, what it extends, what the command line changes, what is wrong with it."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import SuiteError
from kdbench.recipe import Part
from kdbench.suite import load
from kdbench.suite.schema import Suite

# ---- finding


def test_a_suite_is_a_path_or_a_shipped_name(suite_file: Path) -> None:
    assert load.locate(suite_file) == suite_file
    assert load.locate(str(suite_file)) == suite_file
    assert load.locate("digits").name == "digits.toml"
    assert "digits" in load.shipped()


def test_a_file_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text("")
    assert load.locate("digits") == Path("digits")


def test_nok_locate(tmp_path: Path) -> None:
    for name, problem in {
        "digit": "digit: no such file, and no shipped suite of that name; did you mean 'digits'?",
        "there/digts.toml": (
            "there/digts.toml: no such file, and no shipped suite of that name; did you mean 'digits'?"
        ),
        str(tmp_path): f"{tmp_path}: is a folder, not a suite file",
    }.items():
        with pytest.raises(SuiteError) as caught:
            load.locate(name)
        assert caught.value.problems == (problem,)


@pytest.mark.parametrize("name", load.shipped())
def test_shipped_suites_are_whole(name: str) -> None:
    from kdbench.discovery import discover
    from kdbench.resolve import RegistryCatalogue

    path = load.shipped()[name]
    suite = load.load(path, load.read(path), RegistryCatalogue(discover()))
    assert suite.name == name
    assert "?" in suite.question
    assert suite.cost


# ---- reading


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"extends = 3", "extends: must be a suite's path or name, got 3"),
        (
            b"extends = 'digit'",
            "extends: digit: no such file, and no shipped suite of that name; did you mean 'digits'?",
        ),
    ],
)
def test_nok_read(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(SuiteError) as caught:
        load.read(path)
    assert caught.value.problems == (f"{path}: {problem}",)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"name = ", "(at end of document)"),
        (b"[data\n", "(at line 1, column 6)"),
        (b"seeds = [1, 2\nname = 'x'\n", "(at line 2, column 1)"),
        (b"name = '\xff'", "position 8"),
    ],
)
def test_toml_that_cannot_be_read_says_where(tmp_path: Path, content: bytes, where: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(SuiteError) as caught:
        load.read(path)
    [problem] = caught.value.problems
    # What is wrong is said in the words of Python's own reader, which differ between its versions.
    assert problem.startswith(f"{path}: is not valid TOML: ")
    assert where in problem


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        load.read(tmp_path / "x.toml")
    assert caught.value.problems == (f"{tmp_path / 'x.toml'}: no such file",)


def test_plugin_files_are_relative_to_the_suites_folder(tmp_path: Path) -> None:
    tables = {"plugins": ["./loss.py", "deep/other.py", "/absolute.py"]}
    assert load.plugin_files(tmp_path, tables) == [
        tmp_path / "loss.py",
        tmp_path / "deep" / "other.py",
        Path("/absolute.py"),
    ]
    assert load.plugin_files(tmp_path, {"plugins": 3}) == []
    assert load.plugin_files(tmp_path, {}) == []


# ---- extends


def test_extends_merges_tables_and_replaces_lists(suite_file: Path) -> None:
    child = suite_file.with_name("child.toml")
    child.write_text("extends = 'small.toml'\nname = 'child'\nseeds = [3]\n[recipe]\nlr = 0.5\naugmentation = []\n")
    tables = load.read(child)
    base = tomllib.loads(suite_file.read_text())
    assert "extends" not in tables
    assert tables == {
        **base,
        "name": "child",
        "seeds": [3],
        "recipe": {"epochs": 10, "drops": [5, 8], "lr": 0.5, "augmentation": []},
    }


def test_extends_goes_over_several_files_and_shipped_names(suite_file: Path) -> None:
    middle, last = suite_file.with_name("middle.toml"), suite_file.with_name("last.toml")
    middle.write_text("extends = 'digits'\n[recipe]\nepochs = 7\n")
    last.write_text("extends = 'middle.toml'\nname = 'last'\n")
    tables = load.read(last)
    assert (tables["name"], tables["recipe"]["epochs"]) == ("last", 7)
    assert tables["data"]["name"] == "digits"


def test_methods_can_be_added_to_those_of_another_suite(suite_file: Path) -> None:
    child = suite_file.with_name("child.toml")
    child.write_text("extends = 'small.toml'\n[[add_methods]]\nname = 'rkd'\n[[add_methods]]\nname = 'vid'\n")
    tables = load.read(child)
    assert [row["name"] for row in tables["methods"]] == ["none", "kd", "rkd", "vid"]
    assert "add_methods" not in tables
    # Its own list, and more, for whoever extends it in turn.
    child.write_text("extends = 'small.toml'\nmethods = [{name = 'kd'}]\nadd_methods = [{name = 'rkd'}]\n")
    assert [row["name"] for row in load.read(child)["methods"]] == ["kd", "rkd"]


def test_nok_add_methods(suite_file: Path) -> None:
    child = suite_file.with_name("child.toml")

    def problems(content: str) -> tuple[str, ...]:
        child.write_text(content)
        with pytest.raises(SuiteError) as caught:
            load.load(child, load.read(child))
        return tuple(problem.removeprefix(f"{child}: ") for problem in caught.value.problems)

    assert problems("extends = 'small.toml'\nadd_methods = 'rkd'\n") == (
        "add_methods: must be an array of tables, [[add_methods]], got 'rkd'",
    )
    assert problems("extends = 'small.toml'\nmethods = 3\n[[add_methods]]\nname = 'rkd'\n") == (
        "methods: must be a list, got 3",
    )
    assert problems("extends = 'small.toml'\nadd_methods = [3, {nam = 'rkd'}]\n") == (
        "add_methods[0]: must be a table, got 3",
        "add_methods[1].name: is required",
    )
    assert problems("extends = 'small.toml'\n[[add_methods]]\nname = 'kd'\n") == (
        "add_methods: 'kd' occurs twice; give each its own label",
    )
    assert "add_methods: unknown key; did you mean 'methods'?" in problems("[[add_methods]]\nname = 'rkd'\n")


def test_inherited_teachers_go_with_the_pairs_that_have_them(suite_file: Path) -> None:
    with suite_file.open("a") as file:
        file.write("[teachers.resnet20]\nseed = 5\n")
    child = suite_file.with_name("child.toml")
    own_pairs = (
        "extends = 'small.toml'\nteacher_seeds = 'single'\n[[pairs]]\nteacher = 'resnet8'\nstudent = 'resnet8'\n"
    )
    child.write_text(own_pairs)
    assert load.load(child, load.read(child)).teachers == {}
    # What a suite says itself about a teacher that no pair has is a mistake.
    child.write_text(f"{own_pairs}[teachers.resnet20]\nseed = 6\n")
    with pytest.raises(SuiteError) as caught:
        load.load(child, load.read(child))
    assert caught.value.problems == (f"{child}: teachers.resnet20: no pair has this teacher; did you mean 'resnet8'?",)
    child.write_text("extends = 'small.toml'\n")
    assert load.read(child)["teachers"] == {"resnet20": {"seed": 5}}


def test_overrides_come_after_extends(suite_file: Path) -> None:
    child = suite_file.with_name("child.toml")
    child.write_text("extends = 'small.toml'\n[recipe]\nepochs = 9\n")
    assert load.read(child, ["recipe.epochs=20"])["recipe"]["epochs"] == 20


@pytest.mark.parametrize("others", [["a.toml"], ["b.toml", "a.toml"]], ids=["itself", "in a ring"])
def test_extends_itself(tmp_path: Path, others: list[str]) -> None:
    names = ["a.toml", *others]
    for name, next_ in pairwise(names):
        (tmp_path / name).write_text(f"extends = '{next_}'\n")
    with pytest.raises(SuiteError) as caught:
        load.read(tmp_path / "a.toml")
    assert caught.value.problems == (f"{tmp_path / 'a.toml'}: extends itself",)


def test_paths_of_an_extended_suite_are_relative_to_its_own_file(suite_file: Path) -> None:
    folder = suite_file.parent
    suite_file.write_text(
        "plugins = ['loss.py']\n[teachers.a]\nweights = 'a.pth'\n[teachers.b]\nweights = 'IMAGENET1K_V1'\n"
        + "[teachers.c]\nweights = ['c.pth', 'IMAGENET1K_V1']\n"
        + suite_file.read_text().replace("[data]", "[data]", 1)
    )
    (folder / "a.pth").write_bytes(b"")
    (folder / "c.pth").write_bytes(b"")
    (folder / "deep").mkdir()
    child = folder / "deep" / "child.toml"
    child.write_text("extends = '../small.toml'\n")
    tables = load.read(child)
    assert [path.resolve() for path in load.plugin_files(child, tables)] == [folder / "loss.py"]
    assert Path(tables["teachers"]["a"]["weights"]) == folder / "a.pth"
    assert tables["teachers"]["b"]["weights"] == "IMAGENET1K_V1"
    file, name = tables["teachers"]["c"]["weights"]
    assert (Path(file), name) == (folder / "c.pth", "IMAGENET1K_V1")


# ---- --set

SET = [
    ("recipe.epochs=3", ("recipe", "epochs"), 3),
    ("recipe.lr=1e-2", ("recipe", "lr"), 0.01),
    ("recipe.nesterov=true", ("recipe", "nesterov"), True),
    ("recipe.optimizer=adamw", ("recipe", "optimizer"), "adamw"),
    ('recipe.optimizer="adamw"', ("recipe", "optimizer"), "adamw"),
    ("recipe.drops=[1, 2]", ("recipe", "drops"), [1, 2]),
    ("recipe.drops=[]", ("recipe", "drops"), []),
    (" recipe.epochs = 3", ("recipe", "epochs"), 3),
    ("question=a=b", ("question",), "a=b"),
    ("question=is it so?", ("question",), "is it so?"),
    ("question=", ("question",), ""),
    ("name=other", ("name",), "other"),
    ("data.train_limit=128", ("data", "train_limit"), 128),
    ("seeds=[4]", ("seeds",), [4]),
    ("methods.kd.temperature=4.5", ("methods", 1, "temperature"), 4.5),
    ("methods.1.temperature=4.5", ("methods", 1, "temperature"), 4.5),
    ("methods.kd.new.deep=1", ("methods", 1, "new"), {"deep": 1}),
    ('methods=[{name="kd"}]', ("methods",), [{"name": "kd"}]),
    ("pairs.resnet20:resnet8.student=resnet14", ("pairs", 0, "student"), "resnet14"),
    ("pairs.0.recipe.lr=0.5", ("pairs", 0, "recipe"), {"lr": 0.5}),
    ("pairs.0.methods.kd.temperature=9", ("pairs", 0, "methods"), {"kd": {"temperature": 9}}),
    ("recipe.augmentation.crop.padding=1", ("recipe", "augmentation", 0, "padding"), 1),
    ("teachers.resnet20.seed=2", ("teachers",), {"resnet20": {"seed": 2}}),
    ('methods.0={name="kd",label="kd-2.5"}', ("methods", 0), {"name": "kd", "label": "kd-2.5"}),
]


@pytest.mark.parametrize(("override", "place", "value"), SET, ids=[case[0] for case in SET])
def test_ok_set(suite_file: Path, override: str, place: tuple[str | int, ...], value: Any) -> None:
    expected = load.read(suite_file)
    tables: Any = load.read(suite_file, [override])
    found = tables
    for part in place[:-1]:
        expected, found = expected.setdefault(part, {}) if isinstance(expected, dict) else expected[part], found[part]
    assert found[place[-1]] == value
    assert type(found[place[-1]]) is type(value)
    # Nothing else changed.
    expected[place[-1]] = value
    assert found == expected


def test_set_finds_rows_by_label_and_quoted_keys(suite_file: Path) -> None:
    tables = load.read(
        suite_file,
        [
            'methods=[{name="kd",label="soft"},{name="kd",label="kd-2.5"},{name="kd/keras"}]',
            "methods.soft.temperature=1",
            'methods."kd-2.5".temperature=2',
            "methods.kd/keras.temperature=3",
        ],
    )
    assert [row["temperature"] for row in tables["methods"]] == [1, 2, 3]


def test_the_last_set_wins(suite_file: Path) -> None:
    assert load.read(suite_file, ["recipe.epochs=3", "recipe.epochs=4"])["recipe"]["epochs"] == 4


NOK_SET = {
    "recipe.epochs": "must be KEY=VALUE, as in recipe.epochs=3",
    "=3": "must be KEY=VALUE, as in recipe.epochs=3",
    "name.first=3": "name is a value, not a table",
    "recipe.epochs.first=3": "recipe.epochs is a value, not a table",
    "methods.kdd.temperature=3": "'kdd' is not an entry of methods; did you mean 'kd'?",
    "methods.2.temperature=3": "'2' is not an entry of methods; known: kd, none",
    "pairs.resnet20:resnet9.recipe.lr=3": (
        "'resnet20:resnet9' is not an entry of pairs; did you mean 'resnet20:resnet8'?"
    ),
    "seeds.0.x=3": "seeds.0 is a value, not a table",
}


@pytest.mark.parametrize(("override", "problem"), NOK_SET.items(), ids=NOK_SET)
def test_nok_set(suite_file: Path, override: str, problem: str) -> None:
    with pytest.raises(SuiteError) as caught:
        load.read(suite_file, [override])
    assert caught.value.problems == (f"--set {override}: {problem}",)


# ---- problems


def test_every_problem_at_once(problems_of: Callable[..., list[str]]) -> None:
    assert problems_of(
        "nme=x",
        "seeds=[]",
        "recipe.lr=0",
        "recipe.epoch=3",
        "data.name=digit",
        "methods.kd.temprature=1",
        'methods.0={name="non"}',
        "pairs.0.student=resnet9",
        "pairs.0.recipe={epochs=0,lrr=1}",
        "pairs.0.methods={kdd={},kd={tmp=1}}",
        "teachers.resnet20.sed=1",
        "teachers.resnet20.recipe={momentum=2}",
    ) == [
        "recipe.lr: must be positive, got 0",
        "recipe.epoch: unknown key; did you mean 'epochs'?",
        "seeds: needs at least 1, got []",
        "teachers.resnet20.sed: unknown key; did you mean 'seed'?",
        "nme: unknown key; did you mean 'name'?",
        "pairs[0].recipe.epochs: must be positive, got 0",
        "pairs[0].recipe.lrr: unknown key; did you mean 'lr'?",
        "pairs[0].methods.kdd: is not a method of this suite; did you mean 'kd'?",
        "teachers.resnet20.recipe.momentum: must be less than 1, got 2",
        "data.name: data set 'digit' is not registered",
        "methods[0].name: method 'non' is not registered",
        "methods[1].temprature: unknown setting",
        "pairs[0].student: model 'resnet9' is not registered",
        "pairs[0].methods.kd.tmp: unknown setting",
    ]


def test_misspelt_keys_among_settings(problems_of: Callable[..., list[str]]) -> None:
    assert problems_of("data.train_limits=5", "methods.kd.lable=x", "data.rot=y") == [
        "data.train_limits: unknown key; did you mean 'train_limit'?",
        "data.rot: unknown setting",
        "methods[1].lable: unknown key; did you mean 'label'?",
    ]
    assert problems_of('data={nme="digits",train_limits=5,root="x"}') == [
        "data.name: is required",
        "data.nme: unknown key; did you mean 'name'?",
        "data.train_limits: unknown key; did you mean 'train_limit'?",
    ]


def test_a_problem_of_the_recipe_is_not_repeated_for_each_pair(problems_of: Callable[..., list[str]]) -> None:
    assert problems_of("recipe.lr=0", "pairs.0.recipe.batch_size=32") == ["recipe.lr: must be positive, got 0"]
    assert problems_of("recipe.epochs=5", "pairs.0.recipe.batch_size=32") == [
        "recipe: drops must come before epoch 5, got [5, 8]"
    ]


def test_an_empty_file_lacks_everything(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        load.load(tmp_path / "x.toml", {})
    keys = ("name", "question", "data", "recipe", "pairs", "methods", "seeds")
    assert caught.value.problems == tuple(f"{tmp_path / 'x.toml'}: {key}: is required" for key in keys)


def test_a_named_teachers_model_is_checked(problems_of: Callable[..., list[str]]) -> None:
    overrides = ["pairs.0.teacher=big", "teachers.big.model=resnet57"]
    assert problems_of(*overrides) == ["pairs[0].teacher: model 'resnet57' is not registered"]


def test_without_a_catalogue_names_are_not_checked(suite_file: Path) -> None:
    tables = load.read(suite_file, ["methods.kd.name=anything", "pairs.0.student=whatever"])
    assert load.load(suite_file, tables).pairs[0].student == "whatever"


WEIRD = [None, 3, -1.5, True, "text", [], {}, [[1]], [{"name": ["x"]}], {"a": {"b": 1}}, float("nan")]


def _places(tables: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items: Any = tables.items() if isinstance(tables, dict) else enumerate(tables) if isinstance(tables, list) else ()
    for key, value in items:
        yield (*place, key)
        yield from _places(value, (*place, key))


def test_no_value_at_any_key_is_more_than_a_suite_error(suite_file: Path) -> None:
    from kdbench.discovery import discover
    from kdbench.resolve import RegistryCatalogue

    catalogue = RegistryCatalogue(discover())
    full = load.read(
        suite_file,
        [
            "pairs.0.recipe={lr=0.1}",
            "pairs.0.methods={kd={temperature=3.0}}",
            "teachers.resnet20={seed=1,recipe={lr=0.1}}",
            "teacher_seeds=single",
            "data.validation=10",
            "data.train_limit=100",
            'methods.0={name="none",label="baseline"}',
            'plugins=["a.py"]',
        ],
    )
    load.load(suite_file, full, catalogue)
    refused = []
    for place in _places(full):
        for value in WEIRD:
            tables = copy.deepcopy(full)
            inner: Any = tables
            for part in place[:-1]:
                inner = inner[part]
            inner[place[-1]] = value
            try:
                load.plugin_files(suite_file, tables)
                load.load(suite_file, tables, catalogue)
            except SuiteError as error:
                refused.append(error.problems)
    assert len(refused) > 200
    for problems in refused:
        assert all(problem.startswith(f"{suite_file}: ") for problem in problems)
        assert len(set(problems)) == len(problems)


def test_pair_recipe_differs_where_the_pair_says(open_small: Callable[..., Suite]) -> None:
    suite = open_small('pairs.0.recipe={lr=0.01,optimizer="adamw"}')
    recipe = load.pair_recipe(suite, suite.pairs[0].recipe)
    assert recipe == suite.recipe.model_copy(update={"lr": 0.01, "optimizer": Part(name="adamw")})
    assert load.pair_recipe(suite, {}) == suite.recipe


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ('metrics=["gap", "gapp"]', "metrics[1]: metrics: 'gapp' is not registered"),
        ('sections=["wins"]', "sections[0]: sections: 'wins' is not registered"),
        ('figures=["bars"]', "figures[0]: figures: 'bars' is not registered"),
        ('metrics=["gap", "mine.py:gap"]', "metrics: 'gap' occurs twice"),
        ('baselines=["kdd"]', "baselines[0]: 'kdd' is not a method or label of this suite; did you mean 'kd'?"),
        ('baselines=["kd", "kd"]', "baselines: 'kd' occurs twice"),
    ],
)
def test_additions_and_baselines_are_checked(problems_of, override, problem):
    assert problem in problems_of(override)


def test_a_suite_has_one_to_three_baselines(problems_of, open_small):
    assert open_small().baselines == ("none", "kd")
    assert open_small('baselines=["kd"]').baselines == ("kd",)
    for wrong in ("[]", '["none", "kd", "a", "b"]'):
        assert any(problem.startswith("baselines: ") for problem in problems_of(f"baselines={wrong}"))
