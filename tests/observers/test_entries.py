from __future__ import annotations

import math
from typing import Any

import pytest

from kdbench.observers.entries import (
    Point,
    entry_name,
    entry_value,
    environment_tags,
    not_finite,
    parameters,
    points,
    trial_tags,
)
from kdbench.results import EpochRecord, TrialRecord, TrialResult
from kdbench.status import Status

TRIAL = TrialRecord.model_validate(
    {
        "protocol": 2,
        "id": "resnet20-resnet8-kd_T4-seed0-0123456789",
        "suite": "tiny",
        "data": {"name": "digits", "train_limit": None},
        "teacher": "resnet20",
        "student": "resnet8",
        "method": "kd",
        "label": "kd T4",
        "settings": {"temperature": 4.0, "taps": ["stage1", "stage2"], "warm": {"epochs": 2}},
        "seed": 0,
        "recipe": {"epochs": 30, "nesterov": False, "augmentation": [{"name": "flip", "p": 0.5}]},
        "plugin": {"distribution": "kdbench", "version": "0.1.0"},
    }
)


def test_parameters_are_flat_and_complete() -> None:
    assert parameters(TRIAL) == {
        "method": "kd",
        "teacher": "resnet20",
        "student": "resnet8",
        "seed": "0",
        "protocol": "2",
        "settings.temperature": "4.0",
        "settings.taps": '["stage1", "stage2"]',
        "settings.warm.epochs": "2",
        "recipe.epochs": "30",
        "recipe.nesterov": "false",
        "recipe.augmentation": '[{"name": "flip", "p": 0.5}]',
        "data.name": "digits",
        "data.train_limit": "null",
    }


def test_tags_name_the_trial_and_who_made_it() -> None:
    tags = trial_tags(TRIAL, {"kdbench": "0.1.0", "torch": "2.11.0", "git_commit": None})
    assert tags == {
        "mlflow.runName": "kd T4 resnet20:resnet8 seed 0",
        "kdbench.trial_id": "resnet20-resnet8-kd_T4-seed0-0123456789",
        "method": "kd",
        "label": "kd T4",
        "teacher": "resnet20",
        "student": "resnet8",
        "pair": "resnet20:resnet8",
        "seed": "0",
        "plugin": "kdbench",
        "plugin_version": "0.1.0",
        "kdbench_version": "0.1.0",
        "torch_version": "2.11.0",
        "mlflow.source.name": "kdbench",
    }


def test_commit_is_where_mlflow_shows_it() -> None:
    tags = environment_tags({"git_commit": "abc123"})
    assert tags["git_commit"] == tags["mlflow.source.git.commit"] == "abc123"


def test_steps_continue_from_stage_to_stage() -> None:
    records = [
        EpochRecord(epoch=1, stage="boundary", lr=0.1, train_loss=3.0, terms={"margin": 3.0}, seconds=1.5),
        EpochRecord(epoch=2, stage="boundary", lr=0.1, train_loss=2.5, terms={"margin": 2.5}, seconds=1.5),
        EpochRecord(
            epoch=1,
            stage="main",
            lr=0.05,
            train_loss=1.0,
            terms={"ce": 1.0},
            seconds=2.0,
            metrics={"top1": 91.0},
            validation={"top1": 88.0},
        ),
    ]
    assert set(points(records, None)) == {
        Point("boundary/train_loss", 1, 3.0, 1.5),
        Point("boundary/terms/margin", 1, 3.0, 1.5),
        Point("boundary/seconds", 1, 1.5, 1.5),
        Point("boundary/lr", 1, 0.1, 1.5),
        Point("boundary/train_loss", 2, 2.5, 3.0),
        Point("boundary/terms/margin", 2, 2.5, 3.0),
        Point("boundary/seconds", 2, 1.5, 3.0),
        Point("boundary/lr", 2, 0.1, 3.0),
        Point("train_loss", 3, 1.0, 5.0),
        Point("terms/ce", 3, 1.0, 5.0),
        Point("seconds", 3, 2.0, 5.0),
        Point("lr", 3, 0.05, 5.0),
        Point("test/top1", 3, 91.0, 5.0),
        Point("validation/top1", 3, 88.0, 5.0),
    }


def result(**fields: Any) -> TrialResult:
    return TrialResult(
        **{
            "id": "x",
            "status": Status.DONE,
            "epoch": 1,
            "metrics": {"top1": 94.0},
            "cost": {"seconds": 8.5, "teacher_seconds": 0.5, "extra_epochs": 0, "peak_memory_bytes": None},
            "data": {"name": "digits", "fingerprint": "f", "corrupt": 0},
            "environment": {"device": "cpu", "python": "3.11"},
            "finished": "2026-01-01T00:00:00+00:00",
            **fields,
        }
    )


COST = {
    Point("cost/seconds", 1, 8.5, 4.0),
    Point("cost/teacher_seconds", 1, 0.5, 4.0),
    Point("cost/extra_epochs", 1, 0.0, 4.0),
    Point("cost/student_parameters", 1, 0.0, 4.0),
    Point("cost/trained_parameters", 1, 0.0, 4.0),
    Point("cost/adapter_parameters", 1, 0.0, 4.0),
}


def test_the_result_has_the_last_step() -> None:
    done = result(
        validation={"top1": 92.0},
        best_on_test={"epoch": 1, "top1": 95.0},
        teacher={"key": "k", "sha256": "00", "top1": 98.5, "seconds": 3.0},
    )
    epoch = EpochRecord(epoch=1, stage="main", lr=0.1, train_loss=1.0, seconds=4.0)
    assert set(points([epoch], done)) == {
        Point("seconds", 1, 4.0, 4.0),
        Point("lr", 1, 0.1, 4.0),
        Point("train_loss", 1, 1.0, 4.0),
        Point("result/epoch", 1, 1.0, 4.0),
        Point("result/test/top1", 1, 94.0, 4.0),
        Point("result/validation/top1", 1, 92.0, 4.0),
        Point("result/best_on_test.epoch", 1, 1.0, 4.0),
        Point("result/best_on_test.top1", 1, 95.0, 4.0),
        Point("teacher/test/top1", 1, 98.5, 4.0),
        Point("teacher/seconds", 1, 3.0, 4.0),
        *COST,
    }


def test_a_result_without_teacher_or_best_epoch() -> None:
    diverged = result(status=Status.DIVERGED, metrics={})
    names = {point.name for point in points([], diverged)}
    assert names == {"result/epoch", *(point.name for point in COST)}


def test_what_is_not_finite_becomes_a_tag_of_its_first_step() -> None:
    values = [
        Point("train_loss", 1, 0.5, 1.0),
        Point("train_loss", 2, math.inf, 2.0),
        Point("train_loss", 3, math.nan, 3.0),
        Point("nll", 3, math.nan, 3.0),
    ]
    assert not_finite(values) == {
        "not_finite.train_loss": "inf at step 2",
        "not_finite.nll": "nan at step 3",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("terms/ce", "terms/ce"),
        ("terms/kl(a, b)", "terms/kl_a_ b_"),
        ("terms//../ce/", "terms/ce"),
        ("Größe", "Größe"),
        ("..", "_"),
        ("a" * 300, "a" * 250),
    ],
)
def test_names_fit_mlflow(name: str, expected: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    found = entry_name(name)
    assert found == expected
    _validate_metric_name(found)
    _validate_param_name(found)
    _validate_tag_name(found)


def test_long_values_end_in_an_ellipsis() -> None:
    assert entry_value("x" * 10, 10) == "x" * 10
    assert entry_value("x" * 11, 10) == "x" * 9 + "…"
