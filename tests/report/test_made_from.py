from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.report.made_from import digest, is_current
from kdbench.report.render import render
from kdbench.results import TEACHERS, EpochRecord, SuiteFolder, write_json
from kdbench.results.files import read_json

EPOCH = EpochRecord(epoch=4, stage="main", train_loss=1.0, seconds=1.0)


def first(folder: SuiteFolder) -> Path:
    return next(iter(folder)).path


def change(path: Path, key: str, value: object) -> None:
    write_json(path, {**(read_json(path) or {}), key: value})


def change_plan(folder: SuiteFolder) -> None:
    plan = folder.plan
    assert plan is not None
    change(folder.path / "plan.json", "path", "elsewhere.toml")


CHANGES: dict[str, Callable[[SuiteFolder], object]] = {
    "a result": lambda folder: change(first(folder) / "result.json", "epoch", 2),
    "an epoch": lambda folder: folder.trial(first(folder).name).append_epoch(EPOCH),
    "a failure": lambda folder: (first(folder) / "error.json").write_text("{}"),
    "weights that are gone": lambda folder: (first(folder) / "student.safetensors").unlink(),
    "a trial that is gone": lambda folder: shutil.rmtree(first(folder)),
    "the plan": change_plan,
    "the teacher": lambda folder: change(
        next((folder.output / TEACHERS).iterdir()) / "result.json", "sha256", "b" * 64
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_a_report_reads_makes_it_out_of_date(what: str, study: SuiteFolder) -> None:
    before = digest(study)
    assert digest(study) == before
    CHANGES[what](study)
    assert digest(study) != before


def test_neither_the_hour_nor_the_place_do(study: SuiteFolder, tmp_path: Path) -> None:
    before = digest(study)
    change(study.path / "plan.json", "updated", "2031-01-01T00:00:00+00:00")
    shutil.copytree(tmp_path / "runs", tmp_path / "elsewhere")
    assert digest(SuiteFolder(tmp_path / "elsewhere", "digits")) == before


def test_a_report_is_current_if_it_is_whole_and_shows_all(study: SuiteFolder, tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert not is_current(report, digest(study))
    render(study, report, methods=["kd"], plots=False)
    assert not is_current(report, digest(study))
    render(study, report, methods=["kd"])
    assert not is_current(report, digest(study))
    assert is_current(report, digest(study, filters="--method kd"))
    render(study, report)
    assert is_current(report, digest(study))
    for name in ("leaderboard.csv", "overall.csv"):
        (report / name).rename(tmp_path / name)
        assert not is_current(report, digest(study))
        (tmp_path / name).rename(report / name)
    assert is_current(report, digest(study))
