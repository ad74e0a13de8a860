"""Files are written whole or not at all, others may read them, and what dead processes left is removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from kdbench.atomic import HOST
from kdbench.engine import checkpoint
from kdbench.errors import ResultsError
from kdbench.models.weights import write_weights
from kdbench.results import (
    EpochRecord,
    Failure,
    TrialFolder,
    TrialRecord,
    remove_leftovers,
    write_atomically,
    write_json,
)
from kdbench.results.files import read_json


def test_a_write_that_fails_leaves_what_was_there_and_no_remains(tmp_path):
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
    text = json.dumps({"id": "a", "status": "done", "top1": 90.0})
    for broken in (text[:-1], "", "[1]", "\x00"):
        path.write_text(broken)
        assert read_json(path) is None, broken
    path.write_bytes(b"\xff\xfe{}")
    assert read_json(path) is None


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


def test_every_file_of_a_trial_follows_the_umask(umask, tmp_path):
    folder = TrialFolder(tmp_path / "suite" / "a")
    folder.begin(TrialRecord(id="a", teacher="t", student="s", method="m", label="m", seed=0))
    folder.fail(Failure(id="a", stage="main", epoch=1, type="ValueError", message="no good"))
    folder.write_epochs([EpochRecord(epoch=1, stage="main", train_loss=1.0, seconds=1.0)])
    write_weights(folder.weights, {"weight": torch.zeros(3)})
    checkpoint.save(folder.checkpoint, "a", {"weight": torch.zeros(3)})
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.path.iterdir()}
    assert modes == dict.fromkeys(
        ("trial.json", "error.json", "epochs.jsonl", "student.safetensors", "checkpoint.pt"), 0o666 & ~umask
    )


def test_a_writer_that_makes_a_private_file_does_not_decide_the_mode(umask, tmp_path):
    def private(temporary):
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))

    write_atomically(tmp_path / "weights", private)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("n" * 250 + ".json")
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_temporary_files_of_dead_processes_are_removed_and_no_others(tmp_path):
    living = os.getppid()
    day = 24 * 3600
    files = {
        f".result.json.{HOST}.{dead_process()}.tmp": 0,
        f".result.json.{HOST}.{os.getpid()}.tmp": 0,  # of a dead process that had this one's number
        ".result.json.another-host.1.tmp": day + 60,
        f".result.json.{living}.tmp": day + 60,  # named as before, without a host
        ".kept1.json.another-host.1.tmp": day - 60,
        f".kept2.json.{HOST}.{living}.tmp": 2 * day,
        "kept3.json": 2 * day,
        ".kept4.tmp": 2 * day,
        f"kept5.{HOST}.999999999.tmp": 2 * day,
    }
    for name, age in files.items():
        (tmp_path / name).write_text("")
        moment = time.time() - age
        os.utime(tmp_path / name, (moment, moment))
    kept = {name for name in files if "kept" in name}

    def write(temporary):
        removed = {path.name for path in remove_leftovers(tmp_path)}
        assert removed == files.keys() - kept
        assert temporary.exists()  # of this process, which is alive
        temporary.write_text("whole")

    write_atomically(tmp_path / "in-use", write)
    assert {path.name for path in tmp_path.iterdir()} == kept | {"in-use"}


def test_a_killed_write_leaves_one_temporary_file_that_names_host_and_process(tmp_path):
    code = (
        "import os, pathlib, sys; from kdbench.results import write_atomically;"
        "write_atomically(pathlib.Path(sys.argv[1]), lambda temporary: os.kill(os.getpid(), 9))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "x.json"])
    assert process.wait() == -9
    assert [path.name for path in tmp_path.iterdir()] == [f".x.json.{HOST}.{process.pid}.tmp"]
    assert len(remove_leftovers(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_has_no_leftovers(tmp_path):
    assert remove_leftovers(tmp_path / "missing") == []
