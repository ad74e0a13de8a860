"""A suite of seconds on real digits, run through the API or the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdbench.cli import main
from kdbench.hookspecs import hookimpl
from kdbench.run import Results, run_suite

TINY = """
name = "tiny"
question = "Does it run?"
seeds = [0]
checkpoint_every = 1
plugins = {plugins}

[data]
name = "digits"
train_limit = 96
test_limit = 50

[recipe]
epochs = 3

[[pairs]]
teacher = "resnet8"
student = "resnet8"
"""

SHOWN = {"COLUMNS": "200", "NO_COLOR": "1"}
"""As wide as its messages need, whatever the terminal of the tests."""


class Watch:
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []
        self.epochs: list[tuple[str, int]] = []
        self.results: dict[str, Mapping[str, Any]] = {}
        self.errors: dict[str, Mapping[str, Any]] = {}

    @hookimpl
    def kdbench_suite_started(self, plan):
        self.heard.append(("suite started",))

    @hookimpl
    def kdbench_teacher_started(self, teacher):
        self.heard.append(("teacher started", teacher.name))

    @hookimpl
    def kdbench_teacher_finished(self, teacher, result):
        self.heard.append(("teacher finished", teacher.name))

    @hookimpl
    def kdbench_trial_skipped(self, trial, reason):
        self.heard.append(("skipped", trial.label, reason))

    @hookimpl
    def kdbench_trial_started(self, trial):
        self.heard.append(("started", trial.label))

    @hookimpl
    def kdbench_epoch_finished(self, trial, record):
        self.epochs.append((trial.label, record.epoch))

    @hookimpl
    def kdbench_trial_finished(self, trial, result):
        self.heard.append((trial.status, trial.label))
        self.results[trial.label] = result

    @hookimpl
    def kdbench_trial_failed(self, trial, error):
        self.heard.append(("failed", trial.label))
        self.errors[trial.label] = error

    @hookimpl
    def kdbench_suite_finished(self, interrupted):
        self.heard.append(("suite finished", str(interrupted)))


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def write_suite(tmp_path) -> Callable[..., Path]:
    """``write_suite("none", "kd", more="", plugins=())``: a suite file of these methods."""

    def write(*methods: str, more: str = "", plugins: tuple[str, ...] = (), name: str = "tiny.toml") -> Path:
        tables = "".join(f'[[methods]]\nname = "{method}"\n' for method in methods)
        path = tmp_path / name
        path.write_text(TINY.format(plugins=list(plugins)) + tables + more)
        return path

    return write


@pytest.fixture
def run(tmp_path, watch, empty_figures) -> Callable[..., Results]:
    """``run(suite, output="runs", **options)`` with a fresh watch as the only observer; the figures are empty."""

    def go(suite: Path, output: str = "runs", **options: Any) -> Results:
        watch.__init__()
        with empty_figures():
            return run_suite(
                suite,
                **{
                    "output": tmp_path / output,
                    "report_dir": tmp_path / "reports",
                    "device": "cpu",
                    "observers": [watch],
                    **options,
                },
            )

    return go


def _save_empty(figure: Any, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(f"{stem.name}.svg").write_text("<svg></svg>")
    stem.with_name(f"{stem.name}.png").write_bytes(b"")


@pytest.fixture
def empty_figures() -> Callable[[], AbstractContextManager[None]]:
    """``with empty_figures():`` figures are made, but their files are empty.

    Drawing them takes longer than the training here, and most tests do not look at them.
    """

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kdbench.report.figures.draw.save", _save_empty)
            yield

    return patched


@pytest.fixture
def without_figures(empty_figures) -> Iterator[None]:
    """The same for all reports that a test writes in this process."""
    with empty_figures():
        yield


@pytest.fixture
def command(tmp_path) -> Callable[..., list[str]]:
    """The command line of ``kdbench ...``, to be run in ``tmp_path`` by this Python."""

    def line(*arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "kdbench", *map(str, arguments)]

    return line


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``kdbench("run", suite, ...)`` in ``tmp_path``, to its end; in this process, which has imported torch already.

    Where a process of its own is needed, to be killed or to import anew, ``command`` gives its arguments.
    """

    def go(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        line = ["kdbench", *map(str, arguments)]
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", line)
            for name, value in SHOWN.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        return subprocess.CompletedProcess(line, int(ended.value.code or 0), *capfd.readouterr())

    return go


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **SHOWN}
