"""Locks on folders: who refuses, who waits, and what is said where no lock can be had."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from filelock import FileLock

from kdbench.engine.cohort import Interrupted
from kdbench.errors import ResultsError
from kdbench.results import SuiteFolder, TeacherFolder
from kdbench.session import Stop, alone_with, only_one_run


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_folder_is_made_locked_and_released(tmp_path, said):
    suite, teacher = SuiteFolder(tmp_path / "runs", "tiny"), TeacherFolder(tmp_path / "runs/_teachers/k")
    for _ in range(2):
        with only_one_run(suite), alone_with(teacher, Stop(), said.append):
            assert suite.path.is_dir()
            assert teacher.path.is_dir()
    assert said == []


def test_a_second_run_is_refused_at_once(tmp_path):
    suite = SuiteFolder(tmp_path, "tiny")
    with only_one_run(suite), pytest.raises(ResultsError) as caught, only_one_run(suite):
        pytest.fail("two run here")
    assert str(caught.value) == f"{suite.path}: another kdbench run uses this folder; wait for it or stop it"
    assert caught.value.__suppress_context__


class Impatient(Stop):
    """Asked to stop the ``count``-th time that somebody wants to know."""

    def __init__(self, count: int, then) -> None:
        super().__init__()
        self.left = count
        self.then = then

    def asked(self):
        self.left -= 1
        if self.left == 0:
            self.then(self)
        return super().asked()


def test_a_teacher_is_waited_for_and_that_is_said_once(tmp_path, said, monkeypatch):
    monkeypatch.setattr("kdbench.session.POLL", 0.01)
    other = FileLock(tmp_path / ".lock")
    with other, alone_with(TeacherFolder(tmp_path), Impatient(3, lambda stop: other.release()), said.append):
        assert not other.is_locked
    assert said == [f"{tmp_path}: another run is training this teacher; waiting for it"]


def test_waiting_for_a_teacher_ends_where_the_run_is_to_stop(tmp_path, said, monkeypatch):
    monkeypatch.setattr("kdbench.session.POLL", 0.01)
    asked = Impatient(2, lambda stop: stop.ask(signal.SIGTERM))
    refused = pytest.raises(Interrupted, match=r"^interrupted$")
    with FileLock(tmp_path / ".lock"), refused, alone_with(TeacherFolder(tmp_path), asked, said.append):
        pytest.fail("two train it")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOLCK, "cannot be locked (No locks available); choose an --output on a file system with flock"),
        (errno.EROFS, "cannot be written: Read-only file system"),
    ],
)
def test_a_folder_without_locks_is_named(tmp_path, monkeypatch, code, message):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(FileLock, "acquire", fail)
    with pytest.raises(ResultsError) as caught, only_one_run(SuiteFolder(tmp_path, "tiny")):
        pytest.fail("not locked")
    assert str(caught.value) == f"{tmp_path / 'tiny'}: {message}"
