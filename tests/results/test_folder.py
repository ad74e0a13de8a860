"""The results folder: nothing is ever half there."""

from __future__ import annotations

import json
import math
import os

import pytest

from kdbench.results import EpochRecord, Failure, PlanRecord, SuiteFolder, TrialFolder, TrialRecord, TrialResult
from kdbench.results.folder import _parsed_line, _sound_line
from kdbench.status import Status
from kdbench.suite.plan import PROTOCOL

DONE = {
    "id": "a", "status": Status.DONE, "epoch": 3, "metrics": {"top1": 90.0}, "finished": "2026-01-01T00:01:00+00:00",
    "cost": {"seconds": 8.5, "teacher_seconds": 1.5, "extra_epochs": 0},
    "data": {"name": "digits", "fingerprint": "f"}, "environment": {"device": "cpu"},
}  # fmt: skip
DIVERGED = DONE | {"status": Status.DIVERGED, "metrics": {}}
EPOCH = EpochRecord(epoch=1, stage="main", train_loss=2.0, seconds=1.5)
TRIAL = TrialRecord(id="a", teacher="t", student="s", method="m", label="m", seed=0)


@pytest.fixture
def trial(tmp_path) -> TrialFolder:
    folder = TrialFolder(tmp_path / "suite" / "a")
    folder.begin(TRIAL)
    return folder


def test_done_means_a_result_and_weights(trial):
    assert (trial.result, trial.damage()) == (None, "")
    trial.finish(**DONE)
    assert (trial.result, trial.damage()) == (None, "result.json does not list student.safetensors")
    trial.weights.write_bytes(b"weights")
    trial.finish(**DONE)
    assert trial.result == TrialResult(**DONE, files=trial.result.files)
    assert trial.result.files.keys() == {"trial.json", "student.safetensors"}
    assert trial.damage() == trial.damage(thorough=True) == ""


def test_diverged_needs_no_weights(trial):
    trial.finish(**DIVERGED)
    assert trial.result.epoch == 3


def test_an_attempt_clears_the_last_error_and_an_end_the_checkpoint(trial):
    failure = Failure(id="a", stage="main", epoch=2, type="ValueError", message="no good")
    trial.fail(failure)
    assert trial.error == failure
    trial.begin(TRIAL)
    assert trial.error is None
    trial.checkpoint.write_bytes(b"state")
    trial.finish(**DONE)
    assert not trial.checkpoint.exists()


def test_epochs_end_at_a_truncated_line(trial):
    assert trial.epochs == []
    trial.write_epochs([EPOCH])
    trial.append_epoch(EPOCH.model_copy(update={"epoch": 2, "train_loss": float("nan")}))
    with (trial.path / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 3, "tr')
    assert [record.epoch for record in trial.epochs] == [1, 2]


def test_what_is_not_finite_is_kept_in_strict_json(trial):
    def refuse(constant):
        raise AssertionError(constant)

    trial.append_epoch(EPOCH.model_copy(update={"train_loss": math.nan, "terms": {"kd": -math.inf}}))
    text = (trial.path / "epochs.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "format": 2, "epoch": 1, "stage": "main", "train_loss": "NaN", "terms": {"kd": "-Infinity"}, "seconds": 1.5
    }  # fmt: skip
    (record,) = trial.epochs
    assert math.isnan(record.train_loss)
    assert (record.stage, record.terms) == ("main", {"kd": -math.inf})
    trial.write_epochs([record])
    assert (trial.path / "epochs.jsonl").read_text() == text


GOOD = '{"format": 2, "epoch": 1, "stage": "main", "train_loss": 1, "terms": {"ce": 0.5}, "seconds": 1.5}'


@pytest.mark.parametrize(("line", "is_sound"), [
    (GOOD, True),
    (GOOD.replace('"epoch": 1', '"epoch": 1.0'), False),
    (GOOD.replace('"epoch": 1', '"epoch": true'), False),
    (GOOD.replace('"epoch": 1', '"epoch": "1"'), False),
    (GOOD.replace('"epoch": 1', '"epoch": 0'), False),
    (GOOD.replace('"terms": {"ce": 0.5}', '"metrics": {"top1": 101.0}'), False),
    (GOOD.replace('"seconds": 1.5', '"seconds": 1.5, "unknown": 1'), False),
    (GOOD.replace('"stage"', '"format": 2, "stage"'), False),
    (GOOD[:-1], False),
    (GOOD + "}", False),
    (GOOD + " " + GOOD, False),
    ('{"format": 2, }', False),
])  # fmt: skip
def test_the_fast_reading_of_an_epoch_agrees_with_the_thorough_one(line, is_sound):
    fast, thorough = _sound_line(line.encode()), _parsed_line(line.encode(), "epochs.jsonl")
    assert (fast is not None) == is_sound
    if is_sound:
        assert fast == thorough
        assert fast.model_fields_set == thorough.model_fields_set
    elif thorough is not None:
        # Refused by the fast reading alone: such a line is read by the thorough one.
        assert '"format": 2, "stage"' in line


def test_epochs_in_another_order_of_keys_and_of_the_first_format_are_read(trial):
    trial.write_epochs([EPOCH])
    with (trial.path / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 2, "format": 2, "stage": "main", "train_loss": "NaN", "seconds": 1.5}\n')
        file.write('{"epoch": 3, "stage": "main", "train_loss": 1.0, "seconds": 1.5, "top1": 50.0}\n')
        file.write('{"format": 2, "epoch": 4, "stage": "main", "train_loss": "Infinity", "seconds": 1.5}\n')
    assert [record.epoch for record in trial.epochs] == [1, 2, 3, 4]
    assert trial.epochs[2].metrics == {"top1": 50.0}
    assert trial.epochs[3].train_loss == math.inf


def test_a_suite_folder_lists_trials_and_nothing_else(tmp_path, trial):
    folder = SuiteFolder(tmp_path, "suite")
    folder.write_plan(PlanRecord(protocol=PROTOCOL))
    (folder.path / "notes").mkdir()
    assert [found.path.name for found in folder] == ["a"]
    assert folder.teacher("k").weights == tmp_path / "_teachers/k/teacher.safetensors"
    folder.check_protocol()
    trial.clear()
    assert list(folder) == []


def test_a_folder_without_a_plan_has_no_protocol_to_refuse(tmp_path):
    SuiteFolder(tmp_path, "nothing").check_protocol()


def test_leftovers_are_removed_in_the_folders_of_trials_and_teachers(tmp_path):
    folder = SuiteFolder(tmp_path, "suite")
    places = [folder.path, folder.trial("a").path, folder.teacher("k").path]
    remains = []
    for place in places:
        place.mkdir(parents=True)
        (place / "result.json").write_text("{}")
        remains.append(place / f".result.json.another-host.{os.getpid()}.tmp")
        remains[-1].write_text("{")
        os.utime(remains[-1], (0, 0))
    elsewhere = SuiteFolder(tmp_path, "other").path / remains[0].name
    elsewhere.parent.mkdir()
    elsewhere.write_text("{")
    os.utime(elsewhere, (0, 0))
    assert sorted(folder.remove_leftovers()) == sorted(remains)
    assert elsewhere.exists()
    assert all((place / "result.json").exists() for place in places)
