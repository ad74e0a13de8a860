"""What ``kdbench new-method`` writes, and that it works as written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest

from kdbench.cli import main
from kdbench.discovery import discover
from kdbench.scaffold import Names, ScaffoldError, check_name, create


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture(scope="module")
def installed(tmp_path_factory, strangers_shell):
    """A generated distribution, installed in an environment of its own: (its folder, run a command in it)."""
    shell = strangers_shell()
    folder = tmp_path_factory.mktemp("work")

    def run(command, cwd=folder):
        done = subprocess.run(command, shell=True, cwd=cwd, env=shell, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    out = run("kdbench new-method focus")
    own = folder / "kdbench-focus"
    assert "next:  cd kdbench-focus" in out
    run("pip install -e .", own)
    return own, lambda command: run(command, own)


def test_the_generated_method_is_registered_by_its_own_distribution(installed):
    _, run = installed
    [row] = [row for row in json.loads(run("kdbench list methods --json")) if row["name"] == "focus"]
    assert (row["distribution"], row["version"]) == ("kdbench-focus", "0.1.0")
    assert row["settings"]["temperature"] == {"default": 4.0, "type": "float > 0"}


def test_the_generated_method_passes_its_checks(installed):
    _, run = installed
    report = json.loads(run("kdbench check focus --json"))
    [method] = report["methods"]
    assert report["passed"]
    assert {row["check"] for row in method["checks"] if row["status"] != "passed"} == {"adapter-gradient"}


def test_the_generated_suite_runs_to_a_leaderboard(installed):
    own, run = installed
    short = "--set recipe.epochs=1 --set data.train_limit=200 --seed 0"
    run(f"kdbench run suites/focus.toml {short} --tracking-uri none --report-name focus")
    rows = (own / "reports" / "focus" / "leaderboard.csv").read_text().splitlines()
    methods = {dict(zip(rows[0].split(","), row.split(","), strict=True))["method"] for row in rows[1:]}
    assert methods == {"none", "kd", "focus"}


def test_the_generated_tests_pass(installed):
    _, run = installed
    out = run("pytest -q -W error -p no:cacheprovider")
    assert re.search(r"30 passed, 1 skipped", out)


def test_the_loss_is_short(tmp_path):
    create(Names("my-loss"), tmp_path / "new")
    source = (tmp_path / "new" / "src" / "kdbench_my_loss" / "loss.py").read_text()
    body = source.partition("class MyLoss(Method):")[2]
    assert len(body.splitlines()) <= 24


def test_every_part_has_its_name(tmp_path):
    written = create(Names("my-loss"), tmp_path / "new")
    assert [str(path.relative_to(tmp_path / "new")) for path in written] == [
        "pyproject.toml",
        "README.md",
        ".gitignore",
        "src/kdbench_my_loss/__init__.py",
        "src/kdbench_my_loss/loss.py",
        "tests/test_my_loss.py",
        "suites/my-loss.toml",
    ]
    project = tomllib.loads(written[0].read_text())
    assert project["project"]["name"] == "kdbench-my-loss"
    assert project["project"]["entry-points"]["kdbench"] == {"my-loss": "kdbench_my_loss"}
    suite = tomllib.loads(written[-1].read_text())
    assert [method["name"] for method in suite["methods"]] == ["none", "kd", "my-loss"]
    assert suite["data"]["name"] == "digits"
    for path in written:
        assert "{{" not in path.read_text()


@pytest.mark.parametrize(
    ("name", "function", "class_name"),
    [("my-loss", "my_loss", "MyLoss"), ("focus", "focus_loss", "Focus"), ("lambda", "lambda_loss", "Lambda")],
)
def test_names(name, function, class_name, registry):
    names = check_name(name, registry)
    assert (names.function, names.class_name) == (function, class_name)


@pytest.mark.parametrize("name", ["My-Loss", "my_loss", "1loss", "kd/mine", "a--b", "-a", "a-", "", "naïve"])
def test_nok_name_of_another_form(name, registry):
    with pytest.raises(ScaffoldError) as error:
        check_name(name, registry)
    assert str(error.value) == (
        f"'{name}' is not a valid name: use lower-case letters, digits and single dashes, starting with a letter, "
        "as in 'my-loss'"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("true", "'true' is not a valid name: its class would be called True"),
        ("methods", "'methods' needs a package kdbench_methods, which is already installed; choose another name"),
    ],
)
def test_nok_name_that_clashes(name, message, registry):
    with pytest.raises(ScaffoldError) as error:
        check_name(name, registry)
    assert str(error.value) == message


def test_nok_name_of_a_registered_method(registry):
    with pytest.raises(ScaffoldError, match=r"^'kd' is already a method of kdbench .*; choose another name$"):
        check_name("kd", registry)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(
        ScaffoldError, match="already exists and is not overwritten; choose another folder with --directory"
    ):
        create(Names("my-loss"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_an_empty_directory_is_used(tmp_path):
    assert create(Names("my-loss"), tmp_path)


def test_nok_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ScaffoldError, match="cannot be written: Not a directory"):
        create(Names("my-loss"), tmp_path / "file" / "new")


@pytest.mark.parametrize(("name", "code"), [("my-loss", 0), ("My-Loss", 2)])
def test_the_command(name, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdbench", "new-method", name, "--directory", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert (exit_.value.code or 0) == code
    captured = capsys.readouterr()
    if code:
        assert "kdbench: 'My-Loss' is not a valid name" in captured.err
        assert not (tmp_path / "new").exists()
    else:
        assert "pyproject.toml" in captured.out
        assert (tmp_path / "new" / "README.md").is_file()


@pytest.mark.parametrize("name", ["focus", "neighbour-relations"])
@pytest.mark.parametrize("command", [["check", "--select=E,F,W,I,B,UP"], ["format", "--check"]])
def test_the_generated_code_is_clean(name, command, tmp_path):
    create(Names(name), tmp_path / "new")
    options = ["--isolated", "--no-cache", "--line-length=120"]
    ruff = [sys.executable, "-m", "ruff", *command, *options]
    done = subprocess.run(ruff, cwd=tmp_path / "new", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
