"""What an executor is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kdbench.run.job import Job
from kdbench.session import Stop

Hear = Callable[[Job, str, dict[str, Any]], None]
"""Takes one message of a worker: its job, a name and arguments (see :class:`~kdbench.run.job.Tell`)."""


@dataclass(frozen=True)
class Session:
    """What an executor shares with the process that started it."""

    hear: Hear
    """To be called in the thread that called the executor."""
    warn: Callable[[str], None]
    stop: Stop
    """Its answers are passed on to the workers, at least every second."""


class Executor(Protocol):
    """Starts workers and waits for them.

    Claims decide which worker trains what, and results are in the results folder. An executor therefore only runs
    :func:`kdbench.run.worker.work` for each job, passes messages on, and starts a worker that died again.
    """

    def __call__(self, jobs: Sequence[Job], session: Session) -> None:
        """Run all jobs to their ends. If this raises, no worker may be left."""
