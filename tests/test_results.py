"""The results folder: nothing is ever half there."""

from __future__ import annotations

import json
import math

import pytest

from kdbench.errors import ResultsError
from kdbench.results import SuiteFolder, TrialFolder, read_json, write_atomically, write_json

DONE = {"id": "a", "status": "done", "top1": 90.0}


@pytest.fixture
def trial(tmp_path) -> TrialFolder:
    folder = TrialFolder(tmp_path / "suite" / "a")
    folder.begin({"id": "a"})
    return folder


def test_a_write_that_fails_leaves_what_stood_and_no_remains(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def half(temporary):
        temporary.write_text('{"a"')
        raise OSError(28, "No space left on device")

    with pytest.raises(ResultsError) as error:
        write_atomically(path, half)
    assert str(error.value) == f"{path}: cannot be written: No space left on device"
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_is_missing_truncated_or_no_table_is_none(tmp_path):
    path = tmp_path / "x.json"
    assert read_json(path) is None
    text = json.dumps(DONE)
    for broken in (text[:-1], "", "[1]", "\x00"):
        path.write_text(broken)
        assert read_json(path) is None, broken
    path.write_bytes(b"\xff\xfe{}")
    assert read_json(path) is None


def test_done_means_a_result_and_weights(trial):
    assert trial.result is None
    trial.finish(DONE)
    assert trial.result is None
    trial.weights.write_bytes(b"weights")
    assert trial.result == DONE
    trial.finish({**DONE, "status": "strange"})
    assert trial.result is None


def test_diverged_needs_no_weights(trial):
    trial.finish({"id": "a", "status": "diverged", "epoch": 2})
    assert trial.result["epoch"] == 2


def test_an_attempt_clears_the_last_error_and_an_end_the_checkpoint(trial):
    trial.fail({"message": "no good"})
    assert trial.error == {"message": "no good"}
    trial.begin({"id": "a"})
    assert trial.error is None
    trial.checkpoint.write_bytes(b"state")
    trial.finish(DONE)
    assert not trial.checkpoint.exists()


def test_epochs_end_at_a_truncated_line(trial):
    assert trial.epochs == []
    trial.write_epochs([{"epoch": 1}])
    trial.append_epoch({"epoch": 2, "train_loss": float("nan")})
    with (trial.path / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 3, "tr')
    assert [record["epoch"] for record in trial.epochs] == [1, 2]


def test_what_is_not_finite_is_kept_in_strict_json(trial):
    def refuse(constant):
        raise AssertionError(constant)

    trial.append_epoch({"epoch": 1, "stage": "main", "train_loss": float("nan"), "terms": {"kd": float("-inf")}})
    text = (trial.path / "epochs.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "epoch": 1, "stage": "main", "train_loss": "NaN", "terms": {"kd": "-Infinity"}
    }  # fmt: skip
    (record,) = trial.epochs
    assert math.isnan(record["train_loss"])
    assert (record["stage"], record["terms"]) == ("main", {"kd": -math.inf})
    trial.write_epochs([record])
    assert (trial.path / "epochs.jsonl").read_text() == text


def test_a_suite_folder_lists_trials_and_nothing_else(tmp_path, trial):
    folder = SuiteFolder(tmp_path, "suite")
    folder.write_plan({"trials": []})
    (folder.path / "notes").mkdir()
    assert [found.path.name for found in folder] == ["a"]
    assert folder.teacher("k").weights == tmp_path / "_teachers/k/teacher.safetensors"
    folder.check_protocol()
    trial.clear()
    assert list(folder) == []


def test_a_folder_without_a_plan_has_no_protocol_to_refuse(tmp_path):
    SuiteFolder(tmp_path, "nothing").check_protocol()
