"""Checkpoints: all that a trial needs to go on as if it had never stopped."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from kdbench.results import write_atomically
from kdbench.suite.plan import PROTOCOL


def save(path: Path, identifier: str, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    content = {"protocol": PROTOCOL, "id": identifier, **state}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load(path: Path, identifier: str) -> dict[str, Any] | None:
    """The checkpoint; None where it is missing, damaged, or of another trial or protocol."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, EOFError, RuntimeError, OSError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None
    if not isinstance(content, dict) or content.get("id") != identifier or content.get("protocol") != PROTOCOL:
        return None
    return content
