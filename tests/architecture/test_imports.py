"""Who imports whom: the contracts in pyproject.toml hold, and each of them can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]


def lint(folder: Path, contract: str | None = None) -> tuple[int, str]:
    """The exit code and report of import-linter on the packages in ``folder``."""
    only = ["--contract", contract] if contract else []
    done = subprocess.run(
        [*LINT, "--no-cache", "--no-logo", *only],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'plugins'}"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def contracts(root: Path) -> dict[str, str]:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["id"]: contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]}


def test_every_contract_is_kept(root: Path) -> None:
    code, report = lint(root)
    assert code == 0, report
    assert [name for name in contracts(root).values() if f"{name} KEPT" not in report] == []


PLANTED = {
    "rooms": [
        ("kdbench/results.py", "import kdbench.engine.learner", "kdbench.results -> kdbench.engine.learner"),
        ("kdbench/errors.py", "from kdbench.discovery import settings", "kdbench.errors -> kdbench.discovery.settings"),
        (
            "kdbench/report/stats.py",
            "from kdbench.observers import entries",
            "kdbench.report.stats -> kdbench.observers",
        ),
        ("kdbench/engine/device.py", "def late():\n    import kdbench.run", "kdbench.engine.device -> kdbench.run"),
        ("kdbench/attic.py", "", "attic"),
    ],
    "light": [
        ("kdbench/suite/plan.py", "import torch", "kdbench.suite.plan -> torch"),
        ("kdbench/report/stats.py", "from kdbench import method", "kdbench.method -> torch"),
        (
            "kdbench/discovery/settings.py",
            "def late():\n    import torchvision.models",
            "kdbench.discovery.settings -> torchvision",
        ),
    ],
    "mlflow": [
        ("kdbench/run/api.py", "import mlflow", "kdbench.run.api -> mlflow"),
        ("kdbench/observers/progress.py", "from mlflow import MlflowClient", "kdbench.observers.progress -> mlflow"),
    ],
    "matplotlib": [("kdbench/report/strip.py", "import matplotlib.pyplot", "kdbench.report.strip -> matplotlib")],
    "optuna": [("kdbench/tune/loop.py", "import optuna", "kdbench.tune.loop -> optuna")],
    "harness": [
        ("kdbench/resolve.py", "from kdbench_methods.kd import KD", "kdbench.resolve -> kdbench_methods.kd"),
    ],
    "methods": [
        ("plugins/kdbench_methods/kd.py", "import kdbench.models.base", "kdbench_methods.kd -> kdbench.models.base"),
        ("plugins/kdbench_methods/ft.py", "from kdbench import results", "kdbench_methods.ft -> kdbench.results"),
        ("plugins/kdbench_methods/vid.py", "from kdbench import hookspecs", "kdbench_methods.vid -> kdbench.hookspecs"),
    ],
}


@pytest.mark.parametrize(
    ("contract", "file", "line", "told"),
    [(contract, *violation) for contract, violations in PLANTED.items() for violation in violations],
)
def test_a_violation_is_found(root: Path, tmp_path: Path, contract: str, file: str, line: str, told: str) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "kdbench", tmp_path / "kdbench", ignore=ignore)
    shutil.copytree(root / "plugins" / "kdbench_methods", tmp_path / "plugins" / "kdbench_methods", ignore=ignore)
    shutil.copy(root / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    code, report = lint(tmp_path, contract)
    assert code == 1, report
    assert f"{contracts(root)[contract]} BROKEN" in report
    assert told in report


def test_each_contract_has_a_violation_to_find(root: Path) -> None:
    assert set(PLANTED) == set(contracts(root))
