"""Isolates plugins: detects changes that a plugin's call made to global state, and restores it.

:mod:`~kdbench.isolation.aspects` takes microseconds and surrounds every call of a plugin.
:mod:`~kdbench.isolation.functions` finds replaced functions; that takes a fraction of a millisecond and is done once an
epoch. Nothing here waits for a GPU. This is no sandbox: threads, crashes and malice need a process boundary
(docs/isolation.md).
"""

from kdbench.isolation.aspects import State, complaint, state, undo
from kdbench.isolation.calls import contained, default_generator, restored, seed_globally
from kdbench.isolation.functions import Originals

__all__ = [
    "Originals",
    "State",
    "complaint",
    "contained",
    "default_generator",
    "restored",
    "seed_globally",
    "state",
    "undo",
]
