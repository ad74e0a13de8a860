"""Calls of plugins outside a training, and the seeds of global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from kdbench.errors import Incompatible, PluginError, text_of
from kdbench.isolation.aspects import State, complaint, state, undo
from kdbench.isolation.functions import Originals


@contextmanager
def contained(who: str, originals: Originals | None = None) -> Iterator[None]:
    """Around a plugin's call outside a training. Exceptions are passed on, changes to global state are undone.

    Raises ``PluginError`` for what was left changed, and in place of what derives from ``BaseException`` alone; but
    ``KeyboardInterrupt`` and ``SystemExit`` are passed on.
    """
    before = state()
    changed: list[str] = []
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except Incompatible:
        changed = _undo_all(before, originals)
        if not changed:
            raise
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        raise PluginError(f"{who} raised {type(error).__name__}: {text_of(error)}".removesuffix(": ")) from error
    finally:
        changed = changed or _undo_all(before, originals)
    if changed:
        raise PluginError(f"{who} {complaint(changed)}")


@contextmanager
def restored(originals: Originals | None = None) -> Iterator[None]:
    """As :func:`contained`, without a message: for attempts before training."""
    before = state()
    try:
        yield
    finally:
        _undo_all(before, originals)


def _undo_all(before: State, originals: Originals | None) -> list[str]:
    return undo(before) + (originals.undo() if originals is not None else [])


def seed_globally(seed: int, device: torch.device, *, foreign: bool) -> None:
    """Seed the global generators, so that a plugin's numbers do not depend on earlier draws of others.

    Torch's on the CPU and on ``device``; before code of third parties Python's and numpy's too (some 30 microseconds).
    """
    # Not torch.manual_seed, which seeds every kind of device and costs 70 microseconds a call.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        default_generator(device).manual_seed(seed)
    if foreign:
        random.seed(seed)
        np.random.seed(seed % 2**32)


def default_generator(device: torch.device) -> torch.Generator:
    """The global generator of a device."""
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
