"""A record that cannot be true is damaged, whatever its checksum; losses of a diverging run are no damage."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kdbench.errors import TrialError
from kdbench.results import SuiteFolder, TrialFolder, read_json, write_json

RESULT: dict[str, Any] = {
    "id": "a", "status": "done", "epoch": 3, "top1": 90.0, "nll": 0.3, "finished": "2026-01-01T00:01:00+00:00",
    "cost": {"seconds": 8.5, "teacher_seconds": 1.5, "extra_epochs": 0},
    "data": {"name": "digits", "fingerprint": "f"}, "environment": {"device": "cpu"},
}  # fmt: skip
EPOCH: dict[str, Any] = {"epoch": 1, "stage": "main", "train_loss": 2.0, "seconds": 1.5, "top1": 11.0}
MISSING = object()
DEEP: list[Any] = []
for _ in range(90):
    DEEP = [DEEP]


def changed(record: dict[str, Any], where: str, value: object) -> dict[str, Any]:
    *above, key = where.split(".")
    record = dict(record)
    if above:
        record[above[0]] = changed(record[above[0]], key, value)
    elif value is MISSING:
        del record[key]
    else:
        record[key] = value
    return record


@pytest.fixture
def finished(tmp_path) -> TrialFolder:
    place = SuiteFolder(tmp_path, "suite").trial("a")
    place.begin({"id": "a", "teacher": "t", "student": "s", "method": "kd", "label": "kd", "seed": 0})
    place.weights.write_bytes(b"weights")
    place.finish(RESULT)
    assert place.result is not None
    return place


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("cost.seconds", -5.0),
        ("cost.seconds", math.nan),
        ("cost.seconds", math.inf),
        ("cost.seconds", "8.5"),
        ("cost.extra_epochs", 1.5),
        ("cost", [1]),
        ("cost", MISSING),
        ("top1", 1e9),
        ("top1", -1.0),
        ("top1", math.nan),
        ("top1", "high"),
        ("top1", True),
        ("nll", -5.0),
        ("epoch", -3),
        ("epoch", 10**30),
        ("epoch", MISSING),
        ("status", "strange"),
        ("status", ["done"]),
        ("data.fingerprint", MISSING),
        ("data", None),
        ("environment", DEEP),
        ("finished", 7),
        ("finished", "yesterday"),
        ("finished", "2026-01-01T00:01:00"),
        ("files.student.safetensors", MISSING),
        ("files", {"../../elsewhere": {"sha256": "0" * 64, "size": 1, "mtime_ns": 0}}),
        ("id", MISSING),
    ],
)
def test_a_result_that_cannot_be_true_is_damaged(finished, where, value):
    path = finished.path / "result.json"
    record = read_json(path)
    assert record is not None
    if where.startswith("files."):
        record["files"].pop("student.safetensors")
    else:
        record = changed(record, where, value)
    write_json(path, record)
    assert finished.result is None
    expected = "does not name student" if where.startswith("files.") else f": {where.split('.')[0]}"
    assert finished.damage().startswith(f"result.json {expected}" if expected[0] == "d" else f"result.json{expected}")


def test_a_result_of_another_trial_is_damaged(finished):
    finished.finish({**RESULT, "id": "b"})
    assert (finished.result, finished.damage()) == (None, "result.json is of b")


def test_a_result_without_an_accuracy_is_damaged_unless_it_diverged(finished):
    path = finished.path / "result.json"
    record = read_json(path)
    assert record is not None
    write_json(path, changed(record, "top1", MISSING))
    assert finished.damage() == "result.json: top1: is missing"
    write_json(path, {**changed(record, "top1", MISSING), "status": "diverged"})
    assert (finished.damage(), finished.result["status"]) == ("", "diverged")


def test_what_cannot_be_read_back_is_not_written(finished):
    before = finished.result
    with pytest.raises(TrialError, match=r"a/result\.json: would be no result: top1: Input should be less than"):
        finished.finish({**RESULT, "top1": 1e9})
    assert finished.result == before


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("epoch", -3),
        ("epoch", math.nan),
        ("seconds", -1.0),
        ("seconds", MISSING),
        ("top1", 1e9),
        ("stage", 5),
        ("train_loss", MISSING),
        ("train_loss", "low"),
    ],
)
def test_epochs_end_at_one_that_cannot_be_true(finished, where, value):
    finished.write_epochs([EPOCH, changed({**EPOCH, "epoch": 2}, where, value), {**EPOCH, "epoch": 3}])
    assert [record["epoch"] for record in finished.epochs] == [1]


def test_a_loss_that_is_not_finite_is_no_damage(finished):
    finished.write_epochs([{**EPOCH, "train_loss": math.nan, "nll": math.inf, "terms": {"kd": -math.inf}}])
    finished.finish({**RESULT, "nll": math.inf, "kl_to_teacher": math.nan})
    assert len(finished.epochs) == 1
    assert finished.damage(thorough=True) == ""
    assert finished.result["nll"] == math.inf


@pytest.mark.parametrize("name", ["trials", "teachers", "suite"])
def test_a_plan_of_wrong_types_is_none(tmp_path, name):
    folder = SuiteFolder(tmp_path, "suite")
    folder.write_plan({})
    assert folder.plan is not None
    folder.write_plan({name: 5})
    assert folder.plan is None
