"""Which files a source imports, and when its fingerprint changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.sources import hash_sources


def test_fingerprint_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    hashes = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "loss.py").write_text("import helper\n")
        (folder / "helper.py").write_text("A = 1\n")
        hashes.add(hash_sources(folder / "loss.py"))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("statement", "follows"),
    [
        ("import package.helper", {"helper.py"}),
        ("from package import helper", {"helper.py"}),
        ("from package.helper import f", {"helper.py"}),
        ("from . import helper", {"helper.py"}),
        ("from .helper import f", {"helper.py"}),
        ("from .deep import g", {"deep/__init__.py"}),
        ("from .deep import inner", {"deep/inner.py"}),
        ("from package.deep.inner import f", {"deep/inner.py"}),
        ("def late():\n    from . import helper", {"helper.py"}),
        ("from package import f", {"__init__.py"}),
        ("import package", {"__init__.py"}),
        ("from . import f", {"__init__.py"}),
        ("import os, json, torch", set()),
    ],
)
def test_sources_within_a_package(tmp_path: Path, statement: str, follows: set[str]) -> None:
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    files = {"__init__.py", "helper.py", "deep/__init__.py", "deep/inner.py", "neighbour.py"}
    for name in files:
        (package / name).write_text("A = 1\n")
    loss = package / "loss.py"
    loss.write_text(statement + "\n")
    before = hash_sources(loss)
    changing = set()
    for name in files:
        (package / name).write_text("A = 2\n")
        if hash_sources(loss) != before:
            changing.add(name)
        (package / name).write_text("A = 1\n")
    assert changing == follows


def test_first_party_neighbours_keep_their_fingerprints(tmp_path: Path) -> None:
    import kdbench_methods

    source = Path(kdbench_methods.__file__).parent
    copy = tmp_path / "kdbench_methods"
    copy.mkdir()
    for file in source.glob("*.py"):
        (copy / file.name).write_bytes(file.read_bytes())
    before = {name: hash_sources(copy / f"{name}.py") for name in ("kd", "rkd", "ft")}
    (copy / "rkd.py").write_text((copy / "rkd.py").read_text() + "\n# changed\n")
    (copy / "__init__.py").write_text((copy / "__init__.py").read_text() + "\n# changed\n")
    after = {name: hash_sources(copy / f"{name}.py") for name in before}
    assert {name for name in before if before[name] != after[name]} == {"rkd"}
