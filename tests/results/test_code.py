"""The code behind a trial: written beside its results, up to a limit."""

from __future__ import annotations

from pathlib import Path

from kdbench.results import store_code, stored_code
from kdbench.results.code import LIMIT_BYTES


def contents(trial: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in stored_code(trial).items()}


def test_files_are_kept_under_their_names_and_replaced(tmp_path: Path) -> None:
    assert contents(tmp_path) == {}
    store_code(tmp_path, {"method/loss.py": b"A = 1", "method/nets/__init__.py": b""})
    assert contents(tmp_path) == {"method/loss.py": b"A = 1", "method/nets/__init__.py": b""}
    store_code(tmp_path, {"method/loss.py": b"A = 2"})
    assert contents(tmp_path) == {"method/loss.py": b"A = 2"}
    store_code(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_too_large_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    large = b"#" * (LIMIT_BYTES - 2)
    store_code(tmp_path, {"method/loss.py": b"A = 1", "method/table.py": large, "method/z.py": b"Z = 1"})
    note = f"Left out, as the code of a trial may take 1048576 bytes:\nmethod/table.py: {len(large)} bytes\n"
    assert contents(tmp_path) == {"method/loss.py": b"A = 1", "method/z.py": b"Z = 1", "LEFT_OUT.txt": note.encode()}
