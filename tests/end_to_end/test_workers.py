"""Several processes train one suite: each trial once, with the bits of one process, whatever happens to the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kdbench.claims import Holder
from kdbench.opening import open_suite
from kdbench.results import SuiteFolder
from kdbench.status import Status
from tests.end_to_end.conftest import environment

DEADLINE_SECONDS = 180.0
STEPS_PER_EPOCH = 2
GATED = f"""
import os, time
from kdbench.hookspecs import MethodSpec, hookimpl
from kdbench.method import Method

class Gated(Method):
    \"\"\"Stops within its second epoch until the file exists that the environment names.\"\"\"

    steps = 0

    def forward(self, student, teacher, batch):
        self.steps += 1
        while self.steps > {STEPS_PER_EPOCH} and not os.path.exists(os.environ.get("GATE", ".")):
            time.sleep(0.05)
        return {{"ce": (batch.cross_entropy(student.logits), 1.0)}}

@hookimpl
def kdbench_methods():
    return [MethodSpec("gated", "gated:Gated")]
"""
OPTIONS = ("--tracking-uri", "none", "--lease", "2")


@pytest.fixture
def suite(write_suite, tmp_path) -> Path:
    (tmp_path / "gated.py").write_text(GATED)
    return write_suite("none", "gated", plugins=("gated.py",))


@pytest.fixture
def start(command, tmp_path, suite):
    """``start(*options, gate="gate")``: ``kdbench run``, which is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def go(*options: str, gate: str = ".") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command("run", suite, *OPTIONS, *options),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment(), "GATE": gate},
        )
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.communicate()


def said_by(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, said
    return said


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def epochs_of(folder: Path) -> dict[str, list[int]]:
    """The recorded epochs of each trial, by the name of its method."""
    return {trial.description.method: [e.epoch for e in trial.epochs] for trial in SuiteFolder(folder, "tiny")}


def assert_complete_and_equal(folder: Path, expected: Path) -> None:
    """Nothing is missing, damaged or recorded twice, and all weights have the same bits."""
    results = {trial.path.name: trial for trial in SuiteFolder(folder, "tiny")}
    whole = {trial.path.name: trial for trial in SuiteFolder(expected, "tiny")}
    assert results.keys() == whole.keys()
    for name, trial in results.items():
        assert (trial.result.status, trial.damage(thorough=True)) == (Status.DONE, "")
        assert [epoch.epoch for epoch in trial.epochs] == [epoch.epoch for epoch in whole[name].epochs]
        ours, theirs = load_file(trial.weights), load_file(whole[name].weights)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)


@pytest.fixture
def whole(kdbench, suite, tmp_path) -> Path:
    """The results of one undisturbed process."""
    assert kdbench("run", suite, "--tracking-uri", "none", "--output", "whole").returncode == 0
    return tmp_path / "whole"


def test_two_processes_share_a_suite(start, whole, tmp_path):
    more = ("--set", "seeds=[0, 1, 2]")
    processes = [start(*more) for _ in range(2)]
    said = [said_by(process) for process in processes]
    seeds = Counter(trial.description.seed for trial in SuiteFolder(tmp_path / "runs", "tiny"))
    assert seeds == {0: 2, 1: 2, 2: 2}
    trained = [text.count("main 3/3") for text in said]
    assert sum(trained) == 3
    assert "report: " in "".join(said)


def test_what_a_killed_process_trained_is_taken_over_by_one_that_waits(start, whole, tmp_path):
    killed = start(gate="gate")
    wait_until(lambda: epochs_of(tmp_path / "runs").get("gated") == [1])
    waiting = start("--wait")
    wait_until(lambda: "; waiting" in (line := waiting.stdout.readline()) or not line)
    killed.send_signal(signal.SIGKILL)
    said_by(waiting)
    assert_complete_and_equal(tmp_path / "runs", whole)


def test_a_process_that_was_frozen_past_its_lease_damages_nothing(start, whole, tmp_path):
    frozen = start(gate="gate")
    wait_until(lambda: epochs_of(tmp_path / "runs").get("gated") == [1])
    frozen.send_signal(signal.SIGSTOP)
    said_by(start("--wait"))
    assert_complete_and_equal(tmp_path / "runs", whole)
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "runs" / "tiny").rglob("*")
        if path.is_file() and path.suffix != ".tmp"
    }
    (tmp_path / "gate").touch()
    frozen.send_signal(signal.SIGCONT)
    said = said_by(frozen)
    assert "another process has taken it over, because this one gave no sign of life for 2 seconds" in said
    assert_complete_and_equal(tmp_path / "runs", whole)
    after = {path: path.stat().st_mtime_ns for path in before}
    changed = {path.name for path in before if after[path] != before[path]}
    assert changed <= {"plan.json"}


def test_without_wait_a_process_leaves_what_another_one_trains(start, kdbench, suite, tmp_path):
    first = start(gate="gate")
    wait_until(lambda: "gated" in epochs_of(tmp_path / "runs"))
    plan = kdbench("plan", suite).stdout
    assert plan.count(f"pending: in training by process {first.pid} on {os.uname().nodename}") == 2
    said = said_by(start())
    assert f"2 trials in training by process {first.pid} on {os.uname().nodename}; the last process writes" in said
    assert not (tmp_path / "reports").exists()
    (tmp_path / "gate").touch()
    assert "report: " in said_by(first)


def test_fresh_does_not_clear_what_another_one_trains(start, kdbench, suite, tmp_path):
    first = start(gate="gate")
    wait_until(lambda: "gated" in epochs_of(tmp_path / "runs"))
    refused = kdbench("run", suite, *OPTIONS, "--fresh")
    assert refused.returncode == 2
    assert f"is being trained by process {first.pid} on" in refused.stderr
    (tmp_path / "gate").touch()
    said_by(first)


def test_what_died_on_another_machine_before_is_taken_over(write_suite, run, tmp_path):
    file = write_suite("none")
    (trial,) = open_suite(file).plan.trials
    claims = tmp_path / "runs/.claims"
    (claims / "tiny/trials").mkdir(parents=True)
    (claims / "workers").mkdir()
    dead = Holder("far-1-aa", "gpu7", 1, "another machine", lease=1.5, beat=7)
    (claims / "workers/far-1-aa").write_text(json.dumps(asdict(dead)))
    entry = {"owner": "far-1-aa", "together": 1, "epochs": 0, "deaths": 0}
    (claims / f"tiny/trials/{trial.id}.000001").write_text(json.dumps(entry))
    said: list[str] = []
    assert [one.status for one in run(file, warn=said.append).plan.trials] == [Status.DONE]
    assert said == ["1 trial in training by process 1 on gpu7; waiting"]
