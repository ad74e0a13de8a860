"""The command line as users and their scripts meet it; in a process of its own where that is what matters."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from kdbench.atomic import HOST
from kdbench.results import TrialFolder

# However long the students train, their teacher is ready at once.
TEACHER = ("--set", "teachers.resnet8.recipe.epochs=1")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def begin(tmp_path, command):
    """Start ``kdbench ...`` and wait until some trial has written its first epoch (or a checkpoint)."""

    def go(*arguments, until="*/epochs.jsonl", output="runs"):
        process = subprocess.Popen(
            command(*arguments, "--output", output),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not any(
            path.stat().st_size for path in (tmp_path / output / "tiny").glob(until)
        ):
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        return process

    return go


def weights(tmp_path, output):
    return {p.parent.name: load_file(p) for p in (tmp_path / output / "tiny").glob("*/student.safetensors")}


@pytest.mark.usefixtures("without_figures")
def test_killed_in_the_middle_and_started_again_it_ends_with_the_same_bits(write_suite, kdbench, begin, tmp_path):
    suite = write_suite("none", "kd", "vid")
    options = ("--set", "recipe.epochs=12", *TEACHER, "--tracking-uri", "none", "--device", "cpu")
    process = begin("run", suite, *options, until="*/checkpoint.pt", output="killed")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert weights(tmp_path, "killed") == {}
    done = kdbench("run", suite, *options, "--output", "killed")
    assert done.returncode == 0, done.stderr
    assert kdbench("run", suite, *options, "--output", "whole").returncode == 0
    killed, whole = weights(tmp_path, "killed"), weights(tmp_path, "whole")
    assert len(whole) == 3
    assert killed.keys() == whole.keys()
    for name in whole:
        assert all(torch.equal(killed[name][key], whole[name][key]) for key in whole[name])
        records = TrialFolder(tmp_path / "killed/tiny" / name).epochs
        assert [record.epoch for record in records] == list(range(1, 13))


def test_control_c_finishes_the_epoch_and_says_how_to_resume(write_suite, kdbench, begin, tmp_path):
    suite = write_suite("none", "kd")
    # Checkpoints would be a long way off; the interrupt writes them.
    options = ("--set", "recipe.epochs=200", *TEACHER, "--set", "checkpoint_every=1000", "--tracking-uri", "none")
    process = begin("run", suite, *options)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping after this epoch" in stderr
    assert "interrupted; run the same command to resume from the last checkpoint" in stderr
    assert "Traceback" not in stderr
    folders = [p.parent for p in (tmp_path / "runs/tiny").glob("*/checkpoint.pt")]
    assert len(folders) == 2
    reached = {len(TrialFolder(folder).epochs) for folder in folders}
    assert len(reached) == 1
    assert 1 <= reached.pop() < 200
    rows = json.loads(kdbench("plan", suite, *options[:-2], "--json").stdout)["trials"]
    assert {row["status"] for row in rows} == {"pending"}


def test_a_second_control_c_leaves_at_once(write_suite, begin):
    process = begin("run", write_suite("none"), "--set", "recipe.epochs=2000", *TEACHER, "--tracking-uri", "none")
    # One signal right after the other: the first one's epoch cannot have ended yet for good.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_disk_that_is_full_loses_nothing_and_says_so(write_suite, command, kdbench, tmp_path):
    suite = write_suite("none")
    # No file may grow beyond 100 kB: too little for weights, as on a disk that is full.
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", *command("run", suite, "--tracking-uri", "none")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 2
    assert re.search(r"(safetensors|checkpoint\.pt): cannot be written: File too large", limited.stderr)
    assert "Traceback" not in limited.stderr
    assert not list((tmp_path / "runs").rglob("*.tmp"))
    assert kdbench("run", suite, "--tracking-uri", "none").returncode == 0


def test_all_problems_of_a_suite_are_reported_without_a_traceback(write_suite, kdbench, tmp_path):
    suite = write_suite("none", "kdd", more='[[methods]]\nname = "vid"\nvid_weight = -1\nbeta = 2\n')
    suite.write_text(suite.read_text().replace("epochs = 3", "epochs = 0\nlearning_rate = 1"))
    done = kdbench("run", suite)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"kdbench: {suite}: recipe.epochs: must be positive, got 0",
        f"kdbench: {suite}: recipe.learning_rate: unknown key; known: "
        + done.stderr.splitlines()[1].split("known: ")[1],
        f"kdbench: {suite}: methods[1].name: method 'kdd' is not registered; did you mean 'kd'?",
        f"kdbench: {suite}: methods[2].beta: unknown setting; known: ce_weight, initial_variance, vid_weight",
        f"kdbench: {suite}: methods[2].vid_weight: must be at least 0, got -1",
    ]


def test_json_for_scripts(write_suite, kdbench):
    plan = json.loads(kdbench("plan", write_suite("none", "kd"), "--json").stdout)
    assert plan["suite"] == "tiny"
    assert set(plan["trials"][0]) == {"id", "teacher", "student", "method", "label", "seed", "status", "reason"}
    assert plan["cohorts"][0]["trials"] == [row["id"] for row in plan["trials"]]
    methods = {row["name"]: row for row in json.loads(kdbench("list", "methods", "--json").stdout)}
    assert set(methods["kd"]) >= {"name", "paper", "distribution", "version", "settings", "reads"}
    assert methods["kd"]["settings"]["temperature"] == {"default": 4.0, "type": "float > 0"}
    assert methods["rkd"]["reads"] == ["embedding", "logits"]


def test_a_failed_trial_makes_the_exit_code_1(write_suite, kdbench, tmp_path):
    (tmp_path / "broken.py").write_text(
        "from kdbench.method import Method\n"
        "class Broken(Method):\n"
        "    def forward(self, student, teacher, batch):\n"
        "        raise ValueError('no good')\n"
    )
    done = kdbench("run", write_suite("broken"), "-p", tmp_path / "broken.py", "--tracking-uri", "none")
    assert done.returncode == 1
    assert re.search(
        r"kdbench: resnet8-resnet8-broken-seed0-\w{10}: failed: ValueError: no good \(broken.py, line 4\)", done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("list", "methods"), ("list", "methods", "--json"), ("--help",)])
def test_a_reader_that_has_seen_enough_is_no_error(command, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command(*arguments), stdout=writing, stderr=subprocess.PIPE, env=environment(), text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nosuch.toml"), "kdbench: nosuch.toml: no such file, and no shipped suite of that name"),
        (("run",), "kdbench: Missing argument 'SUITE'"),
        (("describe", "kdd"), "kdbench: nothing on offer is called 'kdd'; did you mean 'kd'?"),
        (("report", "digits"), "kdbench: "),
        (("list", "losses"), "kdbench: Invalid value"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(kdbench, arguments, message):
    done = kdbench(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_files_follow_the_umask_and_a_run_removes_what_dead_ones_left(write_suite, command, tmp_path):
    trial = tmp_path / "runs/tiny/some-trial"
    trial.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = trial / f".student.safetensors.{HOST}.{dead.pid}.tmp"
    left.write_bytes(b"half")
    kept = trial / f".student.safetensors.{HOST}.{os.getpid()}.tmp"
    kept.write_bytes(b"half")
    arguments = command(
        "run", write_suite("none"), "--set", "recipe.epochs=1", "--device", "cpu", "--tracking-uri", "none"
    )
    subprocess.run(arguments, cwd=tmp_path, env=environment(), check=True, capture_output=True, umask=0o022)
    assert not left.exists()
    assert kept.exists()
    files = [path for folder in ("runs", "reports") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {"student.safetensors", "teacher.safetensors", "index.html"} <= {path.name for path in files}
    assert {oct(path.stat().st_mode & 0o777) for path in files if path != kept} == {"0o644"}
