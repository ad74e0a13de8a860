"""The code of a trial, stored with its results to show later changes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from kdbench.results.files import write_atomically, write_text

FOLDER = "source"
LEFT_OUT = "LEFT_OUT.txt"
LIMIT_BYTES = 2**20
"""Of all files of a trial; larger ones than fit are named in ``LEFT_OUT.txt``."""


def store_code(trial: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files``, by relative names such as ``method/my_loss.py``, to the folder ``source`` of a trial's folder.

    What an earlier attempt stored is replaced. Raises :class:`ResultsError` where that cannot be written.
    """
    folder = trial / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    left_out = []
    remaining = LIMIT_BYTES
    for name, content in sorted(files.items(), key=lambda item: (len(item[1]), item[0])):
        if len(content) > remaining:
            left_out.append(f"{name}: {len(content)} bytes")
            continue
        remaining -= len(content)
        write_atomically(folder / name, partial(_fill, content))
    if left_out:
        heading = f"Left out, as the code of a trial may take {LIMIT_BYTES} bytes:"
        write_text(folder / LEFT_OUT, "\n".join([heading, *sorted(left_out), ""]))


def stored_code(trial: Path) -> dict[str, Path]:
    """The files that :func:`store_code` wrote, by the same names."""
    folder = trial / FOLDER
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
    return {path.relative_to(folder).as_posix(): path for path in found}


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)
