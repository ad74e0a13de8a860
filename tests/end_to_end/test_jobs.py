"""Several workers of one run: each trial once, with the bits of one process, also if workers die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kdbench.errors import KdbenchError
from kdbench.method import Method
from kdbench.results import SuiteFolder
from kdbench.status import Status

DEADLINE_SECONDS = 180.0
OPTIONS = ("--tracking-uri", "none", "--device", "cpu")
PLUGIN = """
import os, signal, time
from kdbench.hookspecs import MethodSpec, hookimpl
from kdbench.method import Method

class Gated(Method):
    \"\"\"Waits in its second epoch, of two steps, until the file exists that the environment names.\"\"\"

    steps = 0

    def forward(self, student, teacher, batch):
        self.steps += 1
        while self.steps > 2 and not os.path.exists(os.environ.get("GATE", ".")):
            time.sleep(0.05)
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}

class Deadly(Method):
    \"\"\"Kills its process, as a crash of native code does.\"\"\"

    def forward(self, student, teacher, batch):
        os.kill(os.getpid(), signal.SIGSEGV)

@hookimpl
def kdbench_methods():
    return [MethodSpec("gated", "plugin:Gated"), MethodSpec("deadly", "plugin:Deadly")]
"""


@pytest.fixture
def suite(write_suite, tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN)

    def write(*methods: str) -> Path:
        return write_suite(*methods, plugins=("plugin.py",))

    return write


def weights(output: Path) -> dict[str, dict]:
    found = {}
    for trial in SuiteFolder(output, "tiny"):
        assert (trial.result.status, trial.damage(thorough=True)) == (Status.DONE, "")
        found[trial.path.name] = load_file(trial.weights)
    return found


def assert_equal_bits(output: Path, other: Path) -> None:
    ours, theirs = weights(output), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        assert all(tensor.equal(theirs[name][key]) for key, tensor in tensors.items())


def start(command, suite: Path, tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("run", suite, *OPTIONS, *options),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GATE": "gate"},
    )


def worker_at_the_gate(output: Path) -> int:
    """The worker that waits at the gate, from its claim."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        for trial in SuiteFolder(output, "tiny"):
            if trial.description and trial.description.method == "gated" and len(trial.epochs) == 1:
                (claim,) = (output / ".claims/tiny/trials").glob(f"{trial.path.name}.*")
                return int(re.search(r"-([0-9]+)-[0-9a-f]{8}\"", claim.read_text())[1])


def test_workers_of_a_run_share_its_cohorts(suite, run, watch, tmp_path, monkeypatch):
    monkeypatch.setenv("GATE", ".")
    file, more = suite("none", "gated"), {"overrides": ["seeds=[0, 1]", "teacher_seeds=single"], "device": "cpu"}
    run(file, output="one", **more)
    results = run(file, jobs=2, **more)
    assert (results.report / "index.html").exists()
    assert_equal_bits(tmp_path / "runs", tmp_path / "one")
    # Observers hear all workers; that the teacher is ready, which both tell, they hear once.
    assert sorted(watch.epochs) == sorted((m, e) for m in ("none", "gated") for e in (1, 2, 3) for _ in range(2))
    assert (watch.heard[0], watch.heard[-1]) == (("suite started",), ("suite finished", "False"))
    assert watch.heard.count(("teacher finished", "resnet8")) == 1


def test_a_killed_worker_is_replaced_and_a_signal_stops_all_after_their_epoch(suite, command, kdbench, tmp_path):
    file = suite("none", "gated")
    run = start(command, file, tmp_path, "--jobs", "2")
    os.kill(worker_at_the_gate(tmp_path / "runs"), signal.SIGKILL)
    lines = iter(run.stdout.readline, "")
    assert any(re.search(r"worker [12] \(cpu\) died \(SIGKILL\); another one takes over", line) for line in lines)
    run.send_signal(signal.SIGTERM)
    assert any("SIGTERM: stopping after this epoch" in line for line in lines)
    (tmp_path / "gate").touch()
    said, _ = run.communicate(timeout=DEADLINE_SECONDS)
    assert run.returncode == 143, said
    epochs = {trial.description.method: len(trial.epochs) for trial in SuiteFolder(tmp_path / "runs", "tiny")}
    assert epochs["gated"] in {1, 2}
    for output in ("runs", "one"):
        assert kdbench("run", file, *OPTIONS, "--output", output).returncode == 0
    assert_equal_bits(tmp_path / "runs", tmp_path / "one")


def test_the_method_that_kills_workers_is_found_and_costs_no_other(suite, run, tmp_path, monkeypatch):
    monkeypatch.setenv("GATE", ".")
    said: list[str] = []
    results = run(suite("none", "deadly"), device="cpu", jobs=2, parts=1, warn=said.append)
    states = {trial.method: trial.status for trial in results.plan.trials}
    assert states == {"none": Status.DONE, "deadly": Status.FAILED}
    (failed,) = results.failed
    assert re.match(r"[3-9] processes in a row died while they trained it, and none finished an epoch; ", failed.reason)
    assert len([line for line in said if "died (SIGSEGV)" in line]) >= 3


def test_an_error_that_concerns_all_ends_the_run(suite, run, tmp_path):
    file = suite("none", "gated")
    message = r"^teacher resnet8: reaches .* the suite expects 1\.00 .* pass --allow-teacher-mismatch$"
    with pytest.raises(KdbenchError, match=message):
        run(file, jobs=2, overrides=["teachers.resnet8.expected_top1=1"])
    assert all(trial.result is None for trial in SuiteFolder(tmp_path / "runs", "tiny"))


def test_a_class_of_this_process_is_refused(suite, run):
    class Mine(Method):
        def forward(self, student, teacher, batch):
            return {}

    with pytest.raises(KdbenchError, match=r"^several workers need plugins in files, and Mine is a class of this"):
        run(suite("none"), jobs=2, plugins=[Mine])


def test_wrong_numbers_are_refused(suite, run):
    for options, message in (
        ({"jobs": 0}, "jobs: must be at least 1, got 0"),
        ({"parts": 0}, "parts: must be at least 1, got 0"),
        ({"lease": 0.5}, "lease: must be at least 1 seconds, got 0.5"),
        ({"device": "cpu,tpu"}, "--device tpu: must be auto, cpu, cuda or cuda:N"),
    ):
        with pytest.raises(KdbenchError) as caught:
            run(suite("none"), **options)
        assert str(caught.value) == message
