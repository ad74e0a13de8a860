"""The tutorial, as a reader would follow it: every command is run, every file written, every output compared."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import textwrap
import tomllib
from pathlib import Path

import pytest
from torch import nn

from kdbench.method import DataSignature, Incompatible, Method, Signature, TapSignature
from kdbench.testing import CHECKS

PAGE = "writing-a-method.md"


class Reader:
    """Somebody with an empty folder, who does what the page says."""

    def __init__(self, folder: Path, shell: dict[str, str]) -> None:
        self.folder = folder
        self.shell = shell
        self.commands: list[str] = []

    def follow(self, block) -> None:
        if block.language == "console":
            for command, expected in commands(block.text):
                self.run(command, expected)
        elif block.note.startswith("file: "):
            (self.folder / block.note.removeprefix("file: ")).write_text(block.text)
        elif block.note.startswith("replace: "):
            name, _, file = block.note.removeprefix("replace: ").partition(" in ")
            path = self.folder / file
            path.write_text(with_function_replaced(path.read_text(), name, block.text))

    def run(self, command: str, expected: list[str]) -> None:
        self.commands.append(command)
        if command.startswith("cd "):
            self.folder = self.folder / shlex.split(command)[1]
            # All commands are run as written; the suite alone is shortened.
            for suite in self.folder.glob("suites/*.toml"):
                text = suite.read_text()
                assert "epochs = 30" in text
                short = text.replace("epochs = 30", "epochs = 1").replace("[data]", "[data]\ntrain_limit = 200")
                suite.write_text(short)
            return
        bash = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(bash, cwd=self.folder, env=self.shell, capture_output=True, text=True, timeout=300)
        fails = "kdbench check" in command and "grep failed" in command
        assert done.returncode == (1 if fails else 0), f"{command}\n{done.stdout}\n{done.stderr}"
        found = iter([in_words(line) for line in done.stdout.splitlines()])
        for line in expected:
            assert in_words(line) in found, f"{command}: not in this order: {line}\n{done.stdout}"


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, the lines of output that the page shows), of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line:
            found[-1][1].append(line)
    return found


def in_words(line: str) -> str:
    """A line whatever its columns' widths."""
    return " ".join(line.split())


def with_function_replaced(source: str, name: str, text: str) -> str:
    [function] = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    lines = source.splitlines(keepends=True)
    return "".join([*lines[: function.lineno - 1], text, *lines[function.end_lineno :]])


def test_the_tutorial_from_the_idea_to_the_leaderboard(blocks, tmp_path, strangers_shell):
    reader = Reader(tmp_path, strangers_shell())
    for block in blocks(PAGE):
        reader.follow(block)
    for part in ("new-method", "pip install -e .", "check", "pytest", "plan", "run suites", "cat reports", "describe"):
        assert any(part in command for command in reader.commands), part
    board = (reader.folder / "reports" / "focus" / "leaderboard.md").read_text()
    assert re.search(r"^\| \d \| focus \| \d+\.\d+ ± ", board, re.MULTILINE)


def test_every_check_is_explained_and_no_other(page):
    table = page(PAGE).partition("| check | what goes wrong | instead |")[2]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE) == [check.name for check in CHECKS]


def test_the_suite_snippets_are_valid(blocks):
    tables = [tomllib.loads(block.text) for block in blocks(PAGE) if block.language == "toml"]
    assert tables == [{"methods": [{"name": "focus", "label": "focus, T = 1", "temperature": 1.0}]}]


def snippets(blocks) -> dict[str, object]:
    """What the page's Python blocks that belong into a class define there."""
    names: dict[str, object] = {"nn": nn}
    for block in blocks(PAGE):
        if block.language == "python" and not block.note:
            exec(textwrap.dedent(block.text), names)
    return names


def test_the_adapter_snippet_builds_an_adapter(blocks):
    method = Method()
    student, teacher = (
        Signature(name, "resnet", 10, {"stage1": TapSignature((channels, 4, 4), nonnegative=True)})
        for name, channels in (("small", 4), ("large", 8))
    )
    snippets(blocks)["setup"](method, student, teacher, DataSignature(10, 100))
    assert tuple(method.adapter.weight.shape) == (8, 4, 1, 1)
    with pytest.raises(Incompatible, match="focus needs a last stage map; bare has none"):
        snippets(blocks)["setup"](method, Signature("bare", "mlp", 10, {}), teacher, DataSignature(10, 100))


def test_the_expected_failure_snippet_names_a_check(blocks):
    assert snippets(blocks)["expected_failures"].keys() <= {check.name for check in CHECKS}
