"""Checkpoints: the full state from which a trial resumes with identical results."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from kdbench.errors import TrialError, text_of
from kdbench.results import Check, write_atomically
from kdbench.suite.plan import PROTOCOL


def save(path: Path, identifier: str, state: dict[str, Any], check: Check = None) -> None:
    """Write a checkpoint atomically; ``check`` is called right before the old one is replaced.

    Raises ``TrialError`` for a state that cannot be saved or read back (a plugin's ``get_extra_state`` may return
    anything), ``ResultsError`` if the file cannot be written.
    """
    packed = _pack({"protocol": PROTOCOL, "id": identifier, **state})
    write_atomically(path, lambda temporary: _write(temporary, packed), check)


def _write(path: Path, packed: memoryview) -> None:
    path.write_bytes(packed)


def _pack(content: dict[str, Any]) -> memoryview:
    # In memory first: an error here comes from the state, not from the disk.
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
        if any(key.endswith("_extra_state") for key in content.get("modules", ())):
            buffer.seek(0)
            torch.load(buffer, map_location="cpu", weights_only=True)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise TrialError(
            f"its state cannot be saved: {type(error).__name__}: {text_of(error)}; get_extra_state may return tensors, "
            "numbers, strings, and lists and dicts of them"
        ) from error
    return buffer.getbuffer()


def load(path: Path, identifier: str) -> dict[str, Any] | None:
    """The checkpoint; None if it is missing, damaged, or of another trial or protocol."""
    try:
        # torch does not verify the checksums that it writes: training would resume from a damaged weight.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - a damaged file may fail in any way, and weights_only runs no code
        return None
    if not isinstance(content, dict) or content.get("id") != identifier or content.get("protocol") != PROTOCOL:
        return None
    return content
