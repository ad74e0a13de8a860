from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(
    r"(?:<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the comment before it, which tells readers nothing and tests what it is for."""

    language: str
    text: str
    note: str


@pytest.fixture(scope="session")
def page() -> Callable[[str], str]:
    return lambda name: (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def blocks(page: Callable[[str], str]) -> Callable[[str], list[Block]]:
    """The fenced blocks of a page, in order."""
    return lambda name: [
        Block(match["language"], match["text"], match["note"] or "") for match in FENCE.finditer(page(name))
    ]


class Reader:
    """Somebody with an empty folder, who does what the page says."""

    def __init__(self, folder: Path, shell: dict[str, str]) -> None:
        self.folder = folder
        self.shell = shell
        self.commands: list[str] = []

    def follow(self, block: Block) -> None:
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


@pytest.fixture
def reader(tmp_path: Path, strangers_shell: Callable[[], dict[str, str]]) -> Reader:
    return Reader(tmp_path, strangers_shell())
