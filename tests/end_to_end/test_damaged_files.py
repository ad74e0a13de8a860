"""Whatever happens to a file of the results folder: no internal error, no wrong number, and a run repairs it.

Each test tries all damages. Some files are tried by default, all of them with KDBENCH_ALL_FAULTS=1.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdbench.cli import main
from kdbench.hookspecs import hookimpl
from kdbench.results import Failure, TrialFolder
from kdbench.run import run_suite


def flip(where: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= 4
        path.write_bytes(content)

    return damage


def truncate(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        # The end of the last line means nothing.
        path.write_bytes(content[: min(int(share * len(content)), len(content.rstrip()) - 1)])

    return damage


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(3000))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("else")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "emptied": truncate(0),
    "truncated": truncate(0.5),
    "without-its-last-byte": truncate(1),
    "flipped-early": flip(0.3),
    "flipped-late": flip(0.85),
    "garbage": garbage,
    "folder": folder,
    "link-to-itself": loop,
}
# A pair for each damage, named after it: so one run of a command meets them all.
SUITE = """
name = "tiny"
question = "Is it noticed?"
seeds = [0]
checkpoint_every = 1
data = { name = "digits", train_limit = 48, test_limit = 40 }
recipe = { epochs = 2, batch_size = 24 }
methods = [{ name = "kd" }]
"""
for seed, name in enumerate(DAMAGES):
    SUITE += (
        f'[[pairs]]\nteacher = "{name}"\nstudent = "resnet8"\n[teachers.{name}]\nmodel = "resnet8"\nseed = {seed}\n'
    )


def tried(*names: str, by_default: Sequence[str]) -> Sequence[str]:
    return names if os.environ.get("KDBENCH_ALL_FAULTS") else by_default


OF_A_STUDENT = tried(
    "trial.json",
    "epochs.jsonl",
    "result.json",
    "student.safetensors",
    "correct.npy",
    by_default=["result.json", "student.safetensors"],
)
OF_A_TEACHER = tried(
    "teacher.json",
    "epochs.jsonl",
    "result.json",
    "teacher.safetensors",
    "correct.npy",
    by_default=["teacher.safetensors"],
)
INTERRUPTED = tried("checkpoint.pt", "epochs.jsonl", "trial.json", by_default=["checkpoint.pt"])
OF_THE_PLAN = tried(*DAMAGES, by_default=["flipped-early"])


class Midway:
    """Copies each student's folder at the end of the second epoch, with the checkpoint of the first."""

    def __init__(self, to: Path) -> None:
        self.to = to

    @hookimpl
    def kdbench_epoch_finished(self, trial, record, run):
        place = run.output / trial.id
        if record.epoch == 2:
            shutil.copytree(place, self.to / trial.id)


@dataclass(frozen=True)
class Finished:
    """Folders of the students and of the teachers, below ``path``, by the damage that they meet."""

    path: Path
    students: Mapping[str, Path]
    teachers: Mapping[str, Path]
    midway: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path, midway = tmp_path_factory.mktemp("finished"), tmp_path_factory.mktemp("midway")
    (path / "tiny.toml").write_text(SUITE)
    results = run_suite(
        path / "tiny.toml",
        output=path / "runs",
        report_dir=path / "reports",
        device="cpu",
        observers=[Midway(midway)],
    )
    trials = results.plan.trials
    assert {trial.status for trial in trials} == {"done"}
    students = {trial.teacher.name: Path("runs/tiny", trial.id) for trial in trials}
    teachers = {trial.teacher.name: Path("runs/_teachers", trial.teacher.key) for trial in trials}
    assert students.keys() == teachers.keys() == DAMAGES.keys()
    return Finished(path, students, teachers, midway)


@pytest.fixture
def copy(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished suite, which is the working directory."""
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def kdbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``kdbench("plan", ...)``: exit code and output; an internal error fails the test."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["kdbench", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        printed = "".join(capsys.readouterr())
        assert "internal error" not in printed
        assert "Traceback" not in printed
        assert "report was not written" not in printed
        return int(end.value.code or 0), printed

    return call


def numbers(path: Path) -> dict[str, dict[str, str]]:
    """What the report states of each teacher's student, durations and dates left out; of finished trials only."""
    with (path / "reports/tiny/trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "done"]
    kept = ("top1", "nll", "agreement", "kl_to_teacher", "teacher_top1", "teacher_sha256", "epoch")
    return {row["teacher"]: {key: row[key] for key in kept} for row in rows}


def report(copy: Path, kdbench: Callable[..., tuple[int, str]]) -> dict[str, dict[str, str]]:
    shutil.rmtree(copy / "reports")
    code, printed = kdbench("report", "tiny.toml")
    assert code == 0, printed
    return numbers(copy)


@pytest.fixture
def check_run(
    finished: Finished,
    copy: Path,
    kdbench: Callable[..., tuple[int, str]],
    empty_figures: Callable[[], AbstractContextManager[None]],
) -> Callable[[], None]:
    """A run repairs the copy."""

    def check() -> None:
        # What is repaired would be drawn as it was at first.
        with empty_figures():
            code, printed = kdbench("run", "tiny.toml", "--device", "cpu", "--tracking-uri", "none")
        assert code == 0, printed
        assert numbers(copy) == numbers(finished.path)
        for weights in (finished.path / "runs").rglob("*.safetensors"):
            assert (copy / weights.relative_to(finished.path)).read_bytes() == weights.read_bytes()
        assert not [path for name in ("checkpoint.pt", "error.json") for path in (copy / "runs").rglob(name)]

    return check


def test_the_undamaged_suite_is_repeated_bit_for_bit(copy, check_run):
    """Else the other tests would prove nothing."""
    shutil.rmtree(copy / "runs")
    shutil.rmtree(copy / "reports")
    check_run()
    assert len({row["nll"] for row in numbers(copy).values()}) == len(DAMAGES)


@pytest.mark.parametrize("name", OF_A_STUDENT)
def test_of_finished_students(finished, copy, kdbench, check_run, name):
    for damage, place in finished.students.items():
        DAMAGES[damage](copy / place / name)
    code, printed = kdbench("plan", "tiny.toml")
    assert (code, printed.count(f"damaged: {name}")) == (0, len(DAMAGES)), printed
    assert report(copy, kdbench) == {}
    for place in finished.students.values():
        code, printed = kdbench("export", place.name, "--to", "torch", "--out", "kd.pt")
        assert (code, Path("kd.pt").exists()) == (2, False), (place, printed)
    check_run()


@pytest.mark.parametrize("name", OF_A_TEACHER)
def test_of_teachers(finished, copy, kdbench, check_run, name):
    for damage, place in finished.teachers.items():
        DAMAGES[damage](copy / place / name)
    assert kdbench("plan", "tiny.toml")[0] == 0
    assert report(copy, kdbench) == numbers(finished.path)
    # Without its student no teacher is needed.
    for place in finished.students.values():
        shutil.rmtree(copy / place)
    check_run()


@pytest.mark.parametrize("damage", OF_THE_PLAN)
def test_of_the_plan(finished, copy, kdbench, check_run, damage):
    DAMAGES[damage](copy / "runs/tiny/plan.json")
    assert kdbench("plan", "tiny.toml")[0] == 0
    assert kdbench("runs", "tiny")[0] == 0
    check_run()
    assert (copy / "runs/tiny/plan.json").is_file()


@pytest.mark.parametrize("name", INTERRUPTED)
def test_of_interrupted_students(finished, copy, kdbench, check_run, name):
    for damage, place in finished.students.items():
        shutil.rmtree(copy / place)
        shutil.copytree(finished.midway / place.name, copy / place)
        assert (copy / place / "checkpoint.pt").exists()
        DAMAGES[damage](copy / place / name)
    assert kdbench("plan", "tiny.toml")[0] == 0
    assert report(copy, kdbench) == {}
    check_run()


def test_of_failed_students(finished, copy, kdbench, check_run):
    for damage, place in finished.students.items():
        (copy / place / "result.json").unlink()
        failure = Failure(id=place.name, stage="main", epoch=1, type="MemoryError", message="no memory left")
        TrialFolder(copy / place).fail(failure)
        DAMAGES[damage](copy / place / "error.json")
    assert kdbench("plan", "tiny.toml")[0] == 0
    assert report(copy, kdbench) == {}
    check_run()


def test_no_wrong_number_gets_to_mlflow(finished, copy, kdbench):
    pytest.importorskip("mlflow")
    sync = ("mlflow", "sync", "tiny.toml", "--tracking-uri")
    assert kdbench(*sync, "sqlite:///true.db")[0] == 0
    true = metrics(copy / "true.db")
    damaged = [*DAMAGES][::2]
    for damage in damaged:
        DAMAGES[damage](copy / finished.students[damage] / "epochs.jsonl")
    code, printed = kdbench(*sync, "sqlite:///false.db")
    assert (code, f"{len(damaged)} damaged results excluded" in printed) == (0, True), printed
    assert metrics(copy / "false.db") == {value for value in true if value[0] not in damaged}


def metrics(database: Path) -> set[tuple[Any, ...]]:
    query = "select t.value, m.key, m.value, m.step from metrics m join tags t on t.run_uuid = m.run_uuid"
    with closing(sqlite3.connect(database)) as connection:
        return set(connection.execute(f"{query} where t.key = 'teacher'"))
