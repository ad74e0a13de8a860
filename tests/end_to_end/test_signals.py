"""What stops a run from outside: a scheduler, a closed terminal, Ctrl-C; real processes and signals throughout."""

from __future__ import annotations

import os
import pty
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from kdbench.hookspecs import hookimpl
from kdbench.observers.progress import ProgressObserver
from kdbench.results import TrialFolder

DEADLINE_SECONDS = 180.0
STEPS_PER_EPOCH = 6
GATE_AT = 9  # the third step of the second epoch

# At step GATE_AT it waits until it is allowed to continue, so that a signal can arrive in the middle of an epoch.
GATED = f"""
import time
from pathlib import Path
from kdbench.method import Method

HERE = Path(__file__).parent

class Gated(Method):
    name = "gated"
    def forward(self, student, teacher, batch):
        with (HERE / "steps").open("a") as steps:
            steps.write(".")
        while (HERE / "steps").stat().st_size == {GATE_AT} and not (HERE / "go").exists():
            time.sleep(0.01)
        return {{"ce": (batch.cross_entropy(student.logits), 1.0)}}
"""

# Starts a command on a terminal of its own, which it closes once a file has the size of the steps before the gate.
# The tests may themselves run under nohup.
CLOSES_TERMINAL = f"""
import os, pty, signal, sys, time
process, terminal = pty.fork()
if process == 0:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
while not (os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1]) == {GATE_AT}):
    time.sleep(0.02)
os.close(terminal)
time.sleep(0.5)
open(os.path.join(os.path.dirname(sys.argv[1]), "go"), "w").close()
print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""

OPTIONS = ("--set", "recipe.batch_size=16", "--set", "teachers.resnet8.recipe.epochs=1", "--device", "cpu")


@pytest.fixture
def suite(write_suite, tmp_path) -> Path:
    (tmp_path / "gated.py").write_text(GATED)
    return write_suite("none", "gated", plugins=("gated.py",))


@pytest.fixture
def at_the_gate(tmp_path, command):
    """Starts ``kdbench run`` in a process group, and waits until it is in the middle of its second epoch."""

    started = []

    def go(suite, *options) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command("run", suite, *OPTIONS, *options),
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        end = time.monotonic() + DEADLINE_SECONDS
        while process.poll() is None and steps(tmp_path) < GATE_AT:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        return process

    yield go
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def steps(folder: Path) -> int:
    return (folder / "steps").stat().st_size if (folder / "steps").exists() else 0


def open_gate(folder: Path) -> None:
    (folder / "go").touch()


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Standard error up to the line with ``text``."""
    seen = ""
    # A process that ignores the signal would wait for ever, and so would the reading of its output.
    watchdog = threading.Timer(DEADLINE_SECONDS, process.kill)
    watchdog.start()
    try:
        while text not in seen:
            line = process.stderr.readline()
            assert line, (process.wait(), seen)
            seen += line
    finally:
        watchdog.cancel()
    return seen


def epochs_of_checkpoints(folder: Path) -> set[int]:
    """How many epochs each trial's file has, of those that have a checkpoint."""
    return {len(TrialFolder(path.parent).epochs) for path in (folder / "runs/tiny").glob("*/checkpoint.pt")}


def resumed_equals_undisturbed(kdbench, suite, folder: Path, *options) -> bool:
    """Let the stopped run end, train the same without a stop, and compare all bits."""
    open_gate(folder)
    for output in ("runs", "whole"):
        done = kdbench("run", suite, *OPTIONS, *options, "--output", output, "--tracking-uri", "none")
        assert done.returncode == 0, done.stderr
    resumed, whole = (
        {path.parent.name: load_file(path) for path in (folder / output / "tiny").glob("*/student.safetensors")}
        for output in ("runs", "whole")
    )
    assert len(whole) == 2
    assert resumed.keys() == whole.keys()
    return all(torch.equal(resumed[name][key], whole[name][key]) for name in whole for key in whole[name])


def statuses(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        return {status for (status,) in connection.execute("SELECT status FROM runs")}


@pytest.mark.usefixtures("without_figures")
def test_sigterm_finishes_the_epoch_and_the_run_resumes_with_the_same_bits(suite, at_the_gate, kdbench, tmp_path):
    process = at_the_gate(suite)
    process.send_signal(signal.SIGTERM)
    stderr = wait_for(process, "SIGTERM: stopping after this epoch; a second signal (Ctrl-C) aborts immediately")
    open_gate(tmp_path)
    stderr += process.communicate(timeout=DEADLINE_SECONDS)[1]
    assert process.returncode == 143, stderr
    assert "interrupted; run the same command to resume from the last checkpoint" in stderr
    assert "Traceback" not in stderr
    assert steps(tmp_path) == 2 * STEPS_PER_EPOCH
    assert epochs_of_checkpoints(tmp_path) == {2}
    # With overrides, a run has a report folder of its own.
    assert list((tmp_path / "reports").glob("tiny*/index.html"))
    assert statuses(tmp_path / "mlflow.db") == {"KILLED"}
    assert resumed_equals_undisturbed(kdbench, suite, tmp_path)


@pytest.mark.usefixtures("without_figures")
def test_with_a_grace_the_run_stops_within_the_epoch_at_the_last_checkpoint(suite, at_the_gate, kdbench, tmp_path):
    process = at_the_gate(suite, "--grace", "0.2", "--tracking-uri", "none")
    process.send_signal(signal.SIGTERM)
    stderr = wait_for(process, "stopping after this epoch, or in 0.2 seconds if it has not ended by then")
    time.sleep(0.3)
    open_gate(tmp_path)
    stderr += process.communicate(timeout=DEADLINE_SECONDS)[1]
    assert process.returncode == 143, stderr
    assert steps(tmp_path) == GATE_AT
    assert epochs_of_checkpoints(tmp_path) == {1}
    assert resumed_equals_undisturbed(kdbench, suite, tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(suite, at_the_gate, tmp_path, number, code):
    process = at_the_gate(suite, "--tracking-uri", "none")
    process.send_signal(signal.SIGTERM)
    stderr = wait_for(process, "stopping after this epoch")
    process.send_signal(number)
    stderr += process.communicate(timeout=DEADLINE_SECONDS)[1]
    # The gate was never opened.
    assert process.returncode == code, stderr
    assert "aborted; run the same command to resume from the last checkpoint" in stderr
    assert "Traceback" not in stderr
    assert steps(tmp_path) == GATE_AT


@pytest.mark.usefixtures("without_figures")
def test_a_closed_terminal_finishes_the_epoch(suite, command, kdbench, tmp_path):
    run = command("run", suite, *OPTIONS)
    line = [sys.executable, "-c", CLOSES_TERMINAL, str(tmp_path / "steps"), *run]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.stdout.split()[-1] == "129", done.stderr
    assert epochs_of_checkpoints(tmp_path) == {2}
    assert statuses(tmp_path / "mlflow.db") == {"KILLED"}
    assert resumed_equals_undisturbed(kdbench, suite, tmp_path)


class ClosingTerminal:
    """Closes the terminal after the first epoch, as a shell's disowned job sees it: without a signal."""

    def __init__(self, terminal: int) -> None:
        self.terminal = terminal

    @hookimpl
    def kdbench_epoch_finished(self):
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1
        # Observers, methods and models may print, too.
        sys.stdout.write("an epoch has ended\n")


def test_a_closed_terminal_without_a_signal_costs_no_trial(write_suite, run, monkeypatch):
    terminal, end = pty.openpty()
    with open(end, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        shown = ProgressObserver(Console(stderr=True))
        results = run(write_suite("none"), observers=[shown, ClosingTerminal(terminal)])
        assert [trial.status for trial in results.plan.trials] == ["done"]
        assert (results.interrupted, results.failed) == (False, [])
        assert results.report.is_dir()
        assert sys.stderr is stream


def test_what_nohup_ignores_stays_ignored(suite, command, tmp_path):
    open_gate(tmp_path)
    run = ["nohup", *command("run", suite, *OPTIONS, "--tracking-uri", "none")]
    process = subprocess.Popen(run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        end = time.monotonic() + DEADLINE_SECONDS
        while process.poll() is None and steps(tmp_path) < GATE_AT and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "stopping" not in output


def test_data_workers_leave_a_schedulers_signal_to_the_run(suite, at_the_gate, tmp_path):
    """As `scancel` sends it: to every process of the job."""
    for split, images in (("train", STEPS_PER_EPOCH * 8), ("val", 4)):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(images):
                pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    streamed = f'name = "imagenet"\nroot = "{tmp_path}/images"\nsize = 16\nworkers = 2\n'
    text = suite.read_text().replace('name = "digits"\ntrain_limit = 96\ntest_limit = 50\n', streamed)
    suite.write_text(text)
    process = at_the_gate(suite, "--tracking-uri", "none")
    os.killpg(process.pid, signal.SIGTERM)
    stderr = wait_for(process, "stopping after this epoch")
    time.sleep(0.5)
    open_gate(tmp_path)
    stderr += process.communicate(timeout=DEADLINE_SECONDS)[1]
    assert process.returncode == 143, stderr
    assert "Terminated" not in stderr
    assert steps(tmp_path) == 2 * STEPS_PER_EPOCH
    assert epochs_of_checkpoints(tmp_path) == {2}


class Interrupting:
    """Presses Ctrl-C in the teacher's first epoch."""

    @hookimpl
    def kdbench_teacher_epoch_finished(self, teacher, record):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_a_teacher_trains_finishes_the_epoch_and_the_run_resumes(write_suite, run, tmp_path):
    suite = write_suite("none")
    first = run(suite, observers=[Interrupting()])
    assert (first.interrupted, first.stopped_by) == (True, signal.SIGINT)
    assert [trial.status for trial in first.plan.trials] == ["pending"]
    (checkpoint,) = (tmp_path / "runs/_teachers").glob("*/checkpoint.pt")
    assert len(TrialFolder(checkpoint.parent).epochs) == 1
    assert [trial.status for trial in run(suite).plan.trials] == ["done"]
