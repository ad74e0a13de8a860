"""Which methods can read which pairs, remembered from earlier plans in the cache folder.

To try one, its networks are built and run; a plan of the CRD study tries 104. The answer depends on code and settings
alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import kdbench
from kdbench.data.cache import cache_folder
from kdbench.errors import DataError, ResultsError
from kdbench.results import write_json
from kdbench.results.files import read_json
from kdbench.suite.plan import content_hash

MOST = 20_000
"""Answers that are kept, the latest ones: about two megabytes."""


class Remembered:
    """Answers (text) by everything that they depend on. A cache that cannot be read or written costs time only."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._known: dict[str, Any] = {}
        with suppress(DataError, ResultsError, OSError):
            self._path = cache_folder() / "plans" / f"{_code()}.json"
            self._known = read_json(self._path) or {}
        self._changed = False

    def __call__(self, question: Mapping[str, Any], answer: Callable[[], str]) -> str:
        """The answer to ``question``; computed by ``answer`` where it is not known."""
        key = content_hash(question)
        if not isinstance(self._known.get(key), str):
            self._known[key] = answer()
            self._changed = True
        return str(self._known[key])

    def save(self) -> None:
        """Write what was computed, for the next plan."""
        if self._changed and self._path is not None:
            latest = list(self._known.items())[-MOST:]
            with suppress(ResultsError, OSError):
                write_json(self._path, dict(latest))
            self._changed = False


def _code() -> str:
    """Changes with the versions of kdbench and its model libraries, and with every edit of an editable kdbench."""
    digest = hashlib.sha256(kdbench.__version__.encode())
    for library in ("torch", "torchvision", "timm"):
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    package = Path(kdbench.__file__).parent
    for path in sorted(package.rglob("*.py")):
        state = path.stat()
        digest.update(f"{path.relative_to(package)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
