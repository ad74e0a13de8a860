"""What is installed is whole: code, suites, templates, published figures, types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in ("kdbench", "plugins", "suites", "tests/golden"):
        shutil.copytree(root / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, sources)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def files(folder: Path, prefix: str = "") -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{prefix}{path.relative_to(folder).as_posix()}" for path in found}


def test_a_wheel_holds_the_packages_and_the_suites_and_no_more(root: Path, installed: Path) -> None:
    expected = (
        files(root / "kdbench", "kdbench/")
        | files(root / "plugins" / "kdbench_methods", "kdbench_methods/")
        | files(root / "suites", "kdbench/suites/")
        | files(root / "tests" / "golden", "kdbench_methods/golden_vectors/")
    )
    found = {name for name in files(installed) if ".dist-info/" not in name}
    assert found == expected
    assert {"kdbench/py.typed", "kdbench_methods/py.typed", "kdbench/report/templates/page.html.j2"} < found


def test_suites_go_by_name_from_any_folder(installed: Path, tmp_path: Path) -> None:
    program = "from kdbench.suite.load import locate; print(locate('digits'))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == installed / "kdbench" / "suites" / "digits.toml"


def test_golden_vectors_come_along(installed: Path, tmp_path: Path) -> None:
    program = (
        "import torch; from kdbench_methods.golden import cases; print(sum(1 for _ in cases(torch.device('cpu'))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 35
