from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench.data.cache import cache_folder, made_once
from kdbench.errors import DataError


def read(folder: Path) -> str:
    return (folder / "value").read_text()


def test_makes_once_and_reads_ever_after(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "value").write_text("made")

    assert made_once(tmp_path / "a" / "thing", make, read) == "made"
    assert made_once(tmp_path / "a" / "thing", make, read) == "made"
    assert len(calls) == 1


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "value").write_text("half")
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        made_once(tmp_path / "thing", make, read)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_what_is_damaged_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    folder.mkdir()
    (folder / "other").write_text("remains")
    assert made_once(folder, lambda folder: (folder / "value").write_text("new") and None, read) == "new"
    assert not (folder / "other").exists()


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(
        DataError, match=r"thing: cannot be written: .*; set KDBENCH_CACHE to a folder with enough space"
    ):
        made_once(tmp_path / "cache" / "thing", lambda folder: None, read)


PROCESS = """
import sys, time
from pathlib import Path
from kdbench.data.cache import made_once
folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def make(folder):
    (folder / "value").write_text("half")
    with log.open("a") as file:
        file.write("made\\n")
    time.sleep(seconds)
    (folder / "value").write_text("whole")
print(made_once(folder, make, lambda folder: (folder / "value").read_text()))
"""


def start(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROCESS, str(folder), str(log), str(seconds)]
    return subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_concurrent_processes_share_one_making(tmp_path: Path) -> None:
    processes = [start(tmp_path / "thing", tmp_path / "log", 1) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert [out for out, _ in outputs] == ["whole\n"] * 3
    assert (tmp_path / "log").read_text() == "made\n"
    waited = [err for _, err in outputs if err]
    assert set(waited) <= {"thing is being prepared by another process; waiting for it\n"}
    assert waited


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_making_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    process = start(tmp_path / "thing", tmp_path / "log", 60)
    while not (tmp_path / "log").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "thing").exists()

    out, _ = start(tmp_path / "thing", tmp_path / "log", 0).communicate()
    assert out == "whole\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["thing"]


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("KDBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/kdbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "kdbench"
