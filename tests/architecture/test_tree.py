"""The shape of the tree: small modules, and tests where one looks for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

LONGEST = 600
"""Lines of a module; one that grows beyond has two purposes."""

# Folders of tests that look at the whole, or hold data.
ACROSS = {"architecture", "end_to_end", "golden", "protocol"}


def too_long(folder: Path) -> list[str]:
    counted = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(folder)}
    return [f"{path.relative_to(folder)}: {lines} lines" for path, lines in counted.items() if lines > LONGEST]


def sources(folder: Path) -> list[Path]:
    return sorted([*folder.glob("kdbench/**/*.py"), *folder.glob("plugins/**/*.py"), *folder.glob("tests/**/*.py")])


def misplaced(folder: Path) -> Iterator[str]:
    """Test folders without a counterpart, and tests named after a module that lies elsewhere."""
    tests = folder / "tests"
    modules: dict[str, set[str]] = {}
    for package, prefix in ((folder / "kdbench", Path()), (folder / "plugins", Path("plugins"))):
        for path in package.rglob("*.py"):
            if "tests" not in path.relative_to(package).parts:
                place = prefix / path.relative_to(package).parent
                modules.setdefault(path.stem, set()).add(place.as_posix())
    for path in sorted(tests.rglob("test_*.py")):
        place = path.relative_to(tests).parent
        if place.parts[:1] and place.parts[0] in ACROSS:
            continue
        if not (folder / "kdbench" / place).is_dir() and not (folder / place).is_dir():
            yield f"{path.relative_to(folder)}: there is no kdbench/{place}"
        elif (folders := modules.get(path.stem.removeprefix("test_"))) and place.as_posix() not in folders:
            yield f"{path.relative_to(folder)}: the module lies in {' and '.join(sorted(folders))}"


def test_modules_are_small(root: Path) -> None:
    assert too_long(root) == []


def test_tests_mirror_the_tree(root: Path) -> None:
    assert list(misplaced(root)) == []


def test_tests_are_no_package(root: Path) -> None:
    # Two tests may bear one name in two rooms; that works without __init__.py alone.
    assert list((root / "tests").rglob("__init__.py")) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name in ("kdbench/suite/load.py", "plugins/mine/loss.py", "tests/suite/test_load.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("x = 1\n")
    return tmp_path


def test_what_breaks_the_shape_is_found(small: Path) -> None:
    assert too_long(small) == []
    assert list(misplaced(small)) == []
    (small / "kdbench" / "suite" / "load.py").write_text("x = 1\n" * (LONGEST + 1))
    assert too_long(small) == ["kdbench/suite/load.py: 601 lines"]
    for name in ("tests/test_load.py", "tests/nowhere/test_else.py", "tests/plugins/mine/test_loss.py"):
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        (small / name).write_text("")
    assert list(misplaced(small)) == [
        "tests/nowhere/test_else.py: there is no kdbench/nowhere",
        "tests/test_load.py: the module lies in suite",
    ]
