from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdbench.data import content
from kdbench.data.base import FileSplit
from kdbench.data.content import content_of
from kdbench.errors import DataError

WriteImage = Callable[..., np.ndarray]


def split(root: Path, *names: str) -> FileSplit:
    return FileSplit(root, names, np.arange(len(names), dtype=np.int64) % 2)


def settled(root: Path) -> None:
    """Set older times: files written just now are read again, because they may change within one clock tick."""
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.fixture
def files(tmp_path: Path) -> FileSplit:
    root = tmp_path / "files"
    root.mkdir()
    for number in range(5):
        (root / f"{number}.png").write_bytes(bytes([number]) * 10)
    settled(root)
    return split(root, *(f"{number}.png" for number in range(5)))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are opened."""
    names: list[str] = []
    usual = Path.open

    def open_(path: Path, *arguments: object, **options: object) -> object:
        if path.suffix == ".png":
            names.append(path.name)
        return usual(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_)
    return names


def index(cache: Path) -> Path:
    [path] = (cache / "content").iterdir()
    return path


def test_names_labels_order_splits_sizes_and_bytes_decide(tmp_path: Path) -> None:
    for name, data in (("a", b"1"), ("b", b"2"), ("c", b"2"), ("d", b"22")):
        (tmp_path / name).write_bytes(data)
    labelled = FileSplit(tmp_path, ("a", "b"), np.array([1, 0]))
    contents = [
        content_of(split(tmp_path, "a", "b")),
        content_of(labelled),
        content_of(split(tmp_path, "b", "a")),
        content_of(split(tmp_path, "a", "c")),
        content_of(split(tmp_path, "a", "d")),
        content_of(split(tmp_path, "a"), split(tmp_path, "b")),
        content_of(split(tmp_path, "a", "b"), split(tmp_path)),
    ]
    (tmp_path / "b").write_bytes(b"3")
    contents.append(content_of(split(tmp_path, "a", "b")))
    assert len(set(contents)) == len(contents)


def test_path_and_dates_decide_nothing(files: FileSplit, tmp_path: Path) -> None:
    before = content_of(files)
    copy, moved = tmp_path / "copy", tmp_path / "moved"
    shutil.copytree(files.root, copy)
    assert content_of(split(copy, *files.files)) == before
    shutil.move(files.root, moved)
    os.utime(moved / "2.png")
    assert content_of(split(moved, *files.files)) == before
    (tmp_path / "link").symlink_to(moved)
    assert content_of(split(tmp_path / "link", *files.files)) == before


def test_each_file_is_read_once(files: FileSplit, opened: list[str]) -> None:
    before = content_of(files)
    assert sorted(opened) == list(files.files)
    opened.clear()
    assert content_of(files) == before
    assert opened == []


def test_only_a_changed_file_is_read_again(files: FileSplit, opened: list[str]) -> None:
    before = content_of(files)
    # In place, and dated back: equal name, size, inode and modification time.
    (files.root / "3.png").write_bytes(b"another 10")
    os.utime(files.root / "3.png", (1_000_000_000, 1_000_000_000))
    opened.clear()
    assert content_of(files) != before
    assert opened == ["3.png"]


def test_another_file_in_its_place_is_read(files: FileSplit) -> None:
    before = content_of(files)
    (files.root / "new").write_bytes(b"another 10")
    (files.root / "new").replace(files.root / "3.png")
    settled(files.root)
    assert content_of(files) != before


def test_a_file_modified_just_now_is_not_taken_for_unchanged(files: FileSplit, opened: list[str]) -> None:
    # Its next change may fall into the same tick of the file system's clock.
    os.utime(files.root / "3.png")
    content_of(files)
    opened.clear()
    content_of(files)
    assert opened == ["3.png"]


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied", "text", "removed", "other json"])
def test_a_broken_index_is_rebuilt(files: FileSplit, opened: list[str], cache: Path, how: str) -> None:
    before = content_of(files)
    path = index(cache)
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:],
        "emptied": b"",
        "text": b"\xff" * len(whole),
        "other json": b"[1, 2, 3]\n",
    }
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(damaged[how])
    opened.clear()
    assert content_of(files) == before
    assert sorted(opened) == list(files.files)
    assert path.read_bytes() == whole


def test_files_that_are_gone_leave_the_index(files: FileSplit, cache: Path) -> None:
    content_of(files)
    (files.root / "0.png").unlink()
    (files.root / "5.png").write_bytes(b"new")
    os.utime(files.root / "5.png", (1_000_000_000, 1_000_000_000))
    content_of(split(files.root, "1.png", "5.png"))
    entries = json.loads(index(cache).read_text().partition("\n")[2])
    assert sorted(entries) == ["1.png", "2.png", "3.png", "4.png", "5.png"]


@pytest.mark.parametrize("place", ["/proc/kdbench", "file"])
def test_without_an_index_everything_is_read_each_time(
    files: FileSplit,
    opened: list[str],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / place))
    before = content_of(files)
    assert content_of(files) == before
    assert len(opened) == 10
    assert "the next run reads all images again; set KDBENCH_CACHE to a folder with space" in caplog.text


def test_without_a_home_everything_is_read_each_time(files: FileSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_of(files)
    for name in ("KDBENCH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    assert content_of(files) == before


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from kdbench.data.base import FileSplit
from kdbench.data.content import content_of
names = tuple(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
print(content_of(FileSplit(Path(sys.argv[1]), names, np.zeros(len(names), np.int64))))
"""


def test_processes_share_an_index(files: FileSplit, opened: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, str(files.root)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate()[0].strip() for process in processes]
    found = content_of(FileSplit(files.root, files.files, np.zeros(5, np.int64)))
    assert outputs == [found] * 4
    assert opened == []


def test_of_a_large_folder_all_sizes_and_a_sample_are_read(
    files: FileSplit, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "LARGE_BYTES", 49)
    monkeypatch.setattr(content, "SAMPLE_BYTES", 11)
    before = content_of(files)
    sample = sorted(opened)
    assert len(sample) == 2
    copy = tmp_path / "copy"
    shutil.copytree(files.root, copy)
    opened.clear()
    assert content_of(split(copy, *files.files)) == before
    assert sorted(opened) == sample

    def with_changed(name: str, data: bytes) -> str:
        usual = (files.root / name).read_bytes()
        (files.root / name).write_bytes(data)
        changed = content_of(files)
        (files.root / name).write_bytes(usual)
        return changed

    [other, *_] = set(files.files) - set(sample)
    assert with_changed(sample[0], b"another 10") != before
    assert with_changed(other, b"another 10") == before
    assert with_changed(other, b"one longer!") != before


def test_a_file_that_cannot_be_read_is_named(files: FileSplit) -> None:
    (files.root / "3.png").unlink()
    with pytest.raises(DataError) as error:
        content_of(files)
    assert str(error.value) == f"{files.root / '3.png'}: cannot be read: No such file or directory"
    os.mkfifo(files.root / "3.png")
    with pytest.raises(DataError) as error:
        content_of(files)
    assert str(error.value) == f"{files.root / '3.png'}: is not a regular file; remove it"


def test_names_need_not_be_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"1")
    settled(tmp_path)
    assert content_of(split(tmp_path, name)) == content_of(split(tmp_path, name))
