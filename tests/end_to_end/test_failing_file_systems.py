"""A file system that fails ends a run with the place and the reason; the next run finishes the suite."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil

import pytest

from kdbench.errors import ResultsError
from kdbench.hookspecs import hookimpl


@pytest.mark.parametrize(
    ("module", "function", "number", "message"),
    [
        (os, "replace", errno.EXDEV, r"\.json: cannot be written: Invalid cross-device link"),
        (os, "fsync", errno.ENOSPC, r"runs: cannot be written: No space left on device"),
        (os, "fsync", errno.EIO, r"runs: cannot be written: Input/output error"),
        (os, "mkdir", errno.EROFS, r"runs: cannot be written: Read-only file system"),
    ],
    ids=["other-device", "full-at-fsync", "broken", "read-only"],
)
def test_the_reason_is_named_and_the_next_run_finishes(
    write_suite, run, monkeypatch, tmp_path, module, function, number, message
):
    suite = write_suite("none")
    real = getattr(module, function)

    def fails(*arguments, **options):
        # What is not below the results folder works.
        if function in {"replace", "mkdir"} and "runs" not in str(arguments[0]):
            return real(*arguments, **options)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module, function, fails)
        with pytest.raises(ResultsError, match=message):
            run(suite)
    assert [trial.status for trial in run(suite).plan.trials] == ["done"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_no_locks_are_needed(write_suite, run, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)
    assert [trial.status for trial in run(write_suite("none")).plan.trials] == ["done"]


def test_a_file_in_the_place_of_the_results_folder(write_suite, run, tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ResultsError, match=re.escape(f"{tmp_path / 'runs'}: cannot be written: ")):
        run(write_suite("none"))


@pytest.mark.parametrize("when", ["kdbench_trial_started", "kdbench_epoch_finished"])
def test_a_results_folder_removed_during_the_run(write_suite, run, tmp_path, when):
    suite = write_suite("none")

    class Remover:
        """Removes the folder before the first epoch is recorded, or after the last."""

        @hookimpl
        def kdbench_trial_started(self, trial, run):
            if when == "kdbench_trial_started":
                shutil.rmtree(tmp_path / "runs" / "tiny")

        @hookimpl
        def kdbench_epoch_finished(self, trial, record, run):
            if when == "kdbench_epoch_finished" and record.epoch == 3:
                shutil.rmtree(tmp_path / "runs" / "tiny")

    with pytest.raises(ResultsError, match=r"tiny/\w+.*(removed during the training|No such file)"):
        run(suite, observers=[Remover()])
    assert [trial.status for trial in run(suite).plan.trials] == ["done"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_no_file_stays_open_from_epoch_to_epoch(write_suite, run):
    counts = []

    class Counter:
        @hookimpl
        def kdbench_epoch_finished(self, trial, record, run):
            counts.append(len(os.listdir("/proc/self/fd")))

    run(write_suite("none"), observers=[Counter()], overrides=["recipe.epochs=12"])
    assert len(counts) == 12
    assert counts[-1] <= counts[3]
