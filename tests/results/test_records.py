"""A record that cannot be true is damaged, whatever its checksum; losses of a diverging run are no damage."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from kdbench.errors import ResultsError, TrialError
from kdbench.recipe import Recipe
from kdbench.results import EpochRecord, PlanRecord, SuiteFolder, TeacherRecord, TrialFolder, TrialRecord, write_json
from kdbench.results.files import read_json
from kdbench.status import Status
from kdbench.suite.plan import PROTOCOL, Origin, TeacherPlan, Trial

RESULT: dict[str, Any] = {
    "id": "a", "status": "done", "epoch": 3, "metrics": {"top1": 90.0, "nll": 0.3},
    "finished": "2026-01-01T00:01:00+00:00",
    "cost": {"seconds": 8.5, "teacher_seconds": 1.5, "extra_epochs": 0},
    "validation": {"top1": 80.0}, "data": {"name": "digits", "fingerprint": "f"}, "environment": {"device": "cpu"},
}  # fmt: skip
EPOCH: dict[str, Any] = {
    "format": 2, "epoch": 1, "stage": "main", "train_loss": 2.0, "seconds": 1.5, "metrics": {"top1": 11.0},
}  # fmt: skip
TRIAL = TrialRecord(id="a", teacher="t", student="s", method="kd", label="kd", seed=0)
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


def as_given(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "status": Status(content["status"])}


@pytest.fixture
def finished(tmp_path) -> TrialFolder:
    place = SuiteFolder(tmp_path, "suite").trial("a")
    place.begin(TRIAL)
    place.weights.write_bytes(b"weights")
    place.finish(**as_given(RESULT))
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
        ("metrics.top1", 1e9),
        ("metrics.top1", -1.0),
        ("metrics.top1", math.nan),
        ("metrics.top1", "high"),
        ("metrics.top1", True),
        ("metrics.nll", -5.0),
        ("epoch", -3),
        ("epoch", 10**30),
        ("epoch", MISSING),
        ("status", "strange"),
        ("status", ["done"]),
        ("data.fingerprint", MISSING),
        ("data", None),
        ("metrics", DEEP),
        ("environment", DEEP),
        ("validation.top1", 101.0),
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
    expected = "does not list student" if where.startswith("files.") else f": {where.split('.')[0]}"
    assert finished.damage().startswith(f"result.json {expected}" if expected[0] == "d" else f"result.json{expected}")


def test_a_result_of_another_trial_is_damaged(finished):
    finished.finish(**as_given({**RESULT, "id": "b"}))
    assert (finished.result, finished.damage()) == (None, "result.json is of b")


def test_a_result_without_an_accuracy_is_damaged_unless_it_diverged(finished):
    path = finished.path / "result.json"
    record = read_json(path)
    assert record is not None
    write_json(path, changed(record, "metrics.top1", MISSING))
    assert finished.damage() == "result.json: metrics: top1 is missing"
    write_json(path, {**changed(record, "metrics.top1", MISSING), "status": "diverged"})
    assert (finished.damage(), finished.result.status) == ("", Status.DIVERGED)


def test_what_cannot_be_read_back_is_not_written(finished):
    before = finished.result
    with pytest.raises(TrialError, match=r"a/result\.json: cannot be written: metrics: top1: must be between 0"):
        finished.finish(**as_given({**RESULT, "metrics": {"top1": 1e9}}))
    assert finished.result == before


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("epoch", -3),
        ("epoch", math.nan),
        ("seconds", -1.0),
        ("seconds", MISSING),
        ("metrics.top1", 1e9),
        ("stage", 5),
        ("train_loss", MISSING),
        ("train_loss", "low"),
    ],
)
def test_epochs_end_at_one_that_cannot_be_true(finished, where, value):
    lines = [EPOCH, changed({**EPOCH, "epoch": 2}, where, value), {**EPOCH, "epoch": 3}]
    (finished.path / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [record.epoch for record in finished.epochs] == [1]


def test_a_loss_that_is_not_finite_is_no_damage(finished):
    epoch = EpochRecord(
        epoch=1, stage="main", train_loss=math.nan, seconds=1.0, metrics={"nll": math.inf}, terms={"kd": -math.inf}
    )
    finished.write_epochs([epoch])
    metrics = {"top1": 90.0, "nll": math.inf, "kl_to_teacher": math.nan}
    finished.finish(**as_given({**RESULT, "metrics": metrics}))
    assert len(finished.epochs) == 1
    assert finished.damage(thorough=True) == ""
    assert finished.result.metrics["nll"] == math.inf


FORMAT_1 = {
    "id": "a", "status": "done", "epoch": 2, "stage": "main", "selection": "validation", "top1": 90.0, "top5": 99.0,
    "nll": 0.3, "ece": 0.02, "agreement": 91.0, "kl_to_teacher": 0.1, "validation_top1": 88.0,
    "best_on_test": {"epoch": 1, "top1": 90.5}, "cost": RESULT["cost"], "data": RESULT["data"],
    "environment": RESULT["environment"], "finished": RESULT["finished"],
}  # fmt: skip
"""As kdbench wrote it before files named their format."""


def test_a_folder_of_the_first_format_is_read(finished):
    files = read_json(finished.path / "result.json")["files"]
    write_json(finished.path / "result.json", {**FORMAT_1, "files": files})
    result = finished.result
    assert finished.damage() == ""
    assert result.metrics == {
        "top1": 90.0, "top5": 99.0, "nll": 0.3, "ece": 0.02, "agreement": 91.0, "kl_to_teacher": 0.1
    }  # fmt: skip
    assert (result.validation, result.best_on_test.top1) == ({"top1": 88.0}, 90.5)
    line = {"epoch": 1, "stage": "main", "train_loss": 2.0, "seconds": 1.0, "top1": 50.0, "validation_top1": None}
    (finished.path / "epochs.jsonl").write_text(json.dumps(line) + "\n")
    assert [(epoch.metrics, epoch.validation) for epoch in finished.epochs] == [({"top1": 50.0}, {})]


@pytest.mark.parametrize("name", ["trial.json", "result.json", "error.json", "epochs.jsonl", "plan.json"])
def test_a_file_of_a_later_format_is_refused_by_name_and_not_taken_for_damaged(finished, name):
    suite = SuiteFolder(finished.path.parent.parent, "suite")
    reads = {
        "trial.json": lambda: finished.description,
        "result.json": lambda: finished.result,
        "error.json": lambda: finished.error,
        "epochs.jsonl": lambda: finished.epochs,
        "plan.json": lambda: suite.plan,
    }
    path = (suite.path if name == "plan.json" else finished.path) / name
    if name == "epochs.jsonl":
        path.write_text(json.dumps({**EPOCH, "format": 3}) + "\n")
    else:
        write_json(path, {**RESULT, "format": 3})
    with pytest.raises(ResultsError) as error:
        reads[name]()
    assert str(error.value) == f"{path}: has format 3; this kdbench reads formats up to 2; update kdbench"


PLUGIN = {"optimizer": "0" * 64}
DATA = {"name": "digits", "größe": 1.5, "limits": (1, 2)}
TEACHERS = [
    TeacherPlan("big", "resnet20", DATA, Recipe(epochs=3), None, None, 0),
    TeacherPlan("big", "resnet20", DATA, Recipe(epochs=3, lr=0.1), None, None, 7, "code", PLUGIN),
    TeacherPlan("given", "resnet20", DATA, None, "resnet20.pth", "1" * 64, 0),
    TeacherPlan("library", "torchvision:resnet18", DATA, None, "DEFAULT", None, 0),
]


@pytest.mark.parametrize("teacher", TEACHERS, ids=lambda teacher: teacher.weights or str(teacher.seed))
def test_ids_and_keys_follow_from_what_the_files_hold(tmp_path, teacher):
    trial = Trial(
        suite="small", data=DATA, teacher=teacher, student="timm:vit", method="kd", label="KD (ours)", seed=3,
        settings={"temperature": 4.0, "layers": (1, 2), "none": None}, recipe=Recipe(epochs=7, drops=(5,)),
        origin=Origin("other", "1.0", "abc"), student_source="def", part_sources=PLUGIN if teacher.seed else {},
    )  # fmt: skip
    suite = SuiteFolder(tmp_path, "small")
    suite.trial(trial.id).begin(TrialRecord.of(trial))
    suite.teacher(teacher.key).begin(TeacherRecord.of(teacher))
    stored, stored_teacher = suite.trial(trial.id).description, suite.teacher(teacher.key).description
    assert (stored.computed_id, stored_teacher.computed_key) == (trial.id, teacher.key)
    for name, value in {"seed": 4, "settings": {}, "fingerprint": "x", "teacher_key": "x", "protocol": 1}.items():
        assert stored.model_copy(update={name: value}).computed_id != trial.id, name
    for name, value in {"label": "x", "suite": "x", "teacher": "x"}.items():
        assert stored.model_copy(update={name: value}).computed_id == trial.id, name
    for name, value in {"seed": 4, "model": "x", "data": {}, "model_source": "x", "part_sources": {"a": "b"}}.items():
        assert stored_teacher.model_copy(update={name: value}).computed_key != teacher.key, name


def test_records_cannot_be_changed():
    with pytest.raises(ValidationError):
        TRIAL.seed = 1


@pytest.mark.parametrize("name", ["trials", "teachers", "suite"])
def test_a_plan_of_wrong_types_is_none(tmp_path, name):
    folder = SuiteFolder(tmp_path, "suite")
    folder.write_plan(PlanRecord(protocol=PROTOCOL))
    assert folder.plan is not None
    write_json(folder.path / "plan.json", {"protocol": PROTOCOL, name: 5})
    assert folder.plan is None
