"""What identifies a class that a notebook's cell defines, and which classes are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.discovery.cells import read_cell
from kdbench.errors import PluginError

Cell = Callable[[str], dict[str, Any]]

LOSS = """
class MyLoss(Base):
    def forward(self, student, teacher, batch):
        return helper(student) * SCALE
"""


@pytest.fixture
def notebook(cell: Cell) -> Cell:
    cell("class Base:\n    def setup(self): pass")
    cell("SCALE = 2.0")
    cell("def helper(x):\n    return deeper(x)")
    cell("def deeper(x):\n    return x + 1")
    return cell


def digest(names: dict[str, Any]) -> str:
    return read_cell(names["MyLoss"]).digest


def test_the_code_that_a_class_uses_is_gathered_from_all_cells(notebook: Cell) -> None:
    source = read_cell(notebook("import math\n" + LOSS + "unrelated = 3\n")["MyLoss"])
    assert list(source.files) == ["MyLoss.py"]
    text = source.files["MyLoss.py"].decode()
    for part in ("class Base:", "SCALE = 2.0", "def helper(x):", "def deeper(x):", LOSS.strip()):
        assert part in text
    assert "unrelated" not in text
    assert "math" not in text


@pytest.mark.parametrize(
    "change",
    [
        "SCALE = 3.0",
        "def deeper(x):\n    return x + 2",
        LOSS.replace("* SCALE", "+ SCALE"),
        "class Base:\n    def setup(self): return 1\n" + LOSS,
        "def doubled(f):\n    return lambda x: 2 * f(x)\n" + "@doubled\ndef helper(x):\n    return deeper(x)\n" + LOSS,
    ],
)
def test_a_change_of_anything_used_changes_the_digest(notebook: Cell, change: str) -> None:
    before = digest(notebook(LOSS))
    assert digest(notebook(change)) != before


@pytest.mark.parametrize(
    "change",
    [
        "other = 4",
        "# a comment\n" + LOSS + "results = train(MyLoss) if False else None\n",
        LOSS.replace("batch):", "batch):\n        '''Documented.'''\n"),
        "def deeper(x):\n    # the same\n    return (x + 1)",
        # Where a helper is defined does not matter.
        "def helper(x):\n    return deeper(x)\n" + LOSS,
    ],
)
def test_a_change_of_anything_else_does_not(notebook: Cell, change: str) -> None:
    before = digest(notebook(LOSS))
    assert digest(notebook(change)) == before


def test_a_class_keeps_the_base_and_the_defaults_that_it_was_made_with(notebook: Cell) -> None:
    loss = LOSS.replace("batch)", "batch, scale=SCALE)").replace("):\n    def", "):\n    weight = SCALE\n    def", 1)
    old = notebook(loss)["MyLoss"]
    text = read_cell(old).files["MyLoss.py"].decode()
    assert "MyLoss.weight = 2.0" in text
    assert "MyLoss.forward.__defaults__ = (2.0,)" in text
    notebook("class Base:\n    def setup(self): return 'other'")
    assert "other" not in read_cell(old).files["MyLoss.py"].decode()
    assert "other" in read_cell(notebook(loss)["MyLoss"]).files["MyLoss.py"].decode()


def test_local_modules_that_a_notebook_imports_are_part_of_it(
    notebook: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "beside_a_notebook.py").write_text("def f(x):\n    return x\n")
    loss = LOSS.replace("helper(", "beside_a_notebook.f(")
    notebook("import beside_a_notebook")
    try:
        source = read_cell(notebook(loss)["MyLoss"])
        assert set(source.files) == {"MyLoss.py", "beside_a_notebook.py"}
    finally:
        del sys.modules["beside_a_notebook"]


def test_objects_are_known_by_the_statement_in_the_cell_of_the_class(notebook: Cell) -> None:
    first = digest(notebook("helper = object() or 1\n" + LOSS))
    assert digest(notebook("helper = object() or 2\n" + LOSS)) != first


def test_nok_an_object_of_another_cell(notebook: Cell) -> None:
    notebook("helper = object()")
    with pytest.raises(PluginError) as error:
        read_cell(notebook(LOSS)["MyLoss"])
    assert str(error.value) == (
        "class MyLoss: uses 'helper', of type object, from another cell, which cannot identify a trial; "
        "define 'helper' in the class's cell, or both in a file"
    )


@pytest.mark.parametrize(
    "text",
    [
        "class MyLoss(Base):\n    pass",
        "def make():\n    class MyLoss(Base):\n        def forward(self): pass\n    return MyLoss\nMyLoss = make()",
    ],
)
def test_nok_a_class_without_a_source(notebook: Cell, text: str) -> None:
    with pytest.raises(PluginError, match="its source code, which identifies its trials, was not found; define"):
        read_cell(notebook(text)["MyLoss"])


def test_nok_a_class_that_no_cell_keeps() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("class MyLoss:\n    def forward(self): pass", names)
    with pytest.raises(PluginError, match="write it to a file and name the file"):
        read_cell(names["MyLoss"])


def test_members_that_are_no_functions_are_passed_over(notebook: Cell) -> None:
    names = notebook(
        "class Called:\n    def __call__(self): pass\n"
        "class MyLoss(Base):\n    called = Called()\n    @property\n    def reads(self): return SCALE\n"
    )
    assert "SCALE = 2.0" in read_cell(names["MyLoss"]).files["MyLoss.py"].decode()
