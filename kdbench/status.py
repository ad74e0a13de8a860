"""The states of a trial."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a trial is. :attr:`DONE` and :attr:`DIVERGED` are outcomes: they are not repeated."""

    PENDING = "pending"
    DONE = "done"
    DIVERGED = "diverged"
    FAILED = "failed"
    SKIPPED = "skipped"
    STALE = "stale"
    """Trained with another teacher, or replaced by a later trial of the same name. Reports alone use it."""


FINISHED = (Status.DONE, Status.DIVERGED)
UNFINISHED = (Status.PENDING, Status.FAILED)
"""What the next run trains."""
