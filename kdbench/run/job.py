"""A worker's job, and what it and the process that started it say to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdbench.hookspecs import RunInfo
from kdbench.results import Failure
from kdbench.session import Stop


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; can be sent to another machine that has the same files and packages."""

    suite: Path | Mapping[str, Any]
    overrides: tuple[str, ...]
    plugins: tuple[str, ...]
    info: RunInfo
    """Of the invocation; the worker sets its own device and number."""
    allow_teacher_mismatch: bool
    lease: float
    parts: int | None
    """Into so many parts cohorts are divided; None for as many as the number of workers requires."""
    wait: bool = False
    """Whether workers stay until no other process is training."""
    adopts_from: frozenset[str] | None = None
    """See :class:`~kdbench.run.context.Context`."""
    sign: Path = Path()
    """A file in the results folder that exists as long as the first process lives: who sees it, sees the folder."""
    folder: Path = field(default_factory=Path.cwd)
    """The working folder, in which paths of a suite that is a mapping are relative."""
    number: int = 0
    """Counts from 1."""
    device: str = "auto"
    threads: int | None = None
    """Torch's threads on the CPU; None for its own choice."""
    chosen: frozenset[str] = frozenset()
    teacher: str = ""
    """The key of the only teacher that is needed; empty if there may be several."""
    trainings: Mapping[str, str] = field(default_factory=dict)
    """:attr:`~kdbench.suite.plan.Trial.training` of the plan's trials that have one, by id."""
    failures: Mapping[str, Failure | None] = field(default_factory=dict)
    """See :class:`~kdbench.run.work.Work`."""

    def sees_results(self) -> bool:
        """Whether this process can use the results folder: it may be another machine, with another file system."""
        return self.sign.is_file()


class Tell(Protocol):
    """Sends one message to the first process: the name of a hook, with its arguments, or of another message."""

    def __call__(self, name: str, /, **arguments: Any) -> None:
        """Returns when the message is on its way; an error means that the first process has ended."""


WARNING = "warning"
"""The message of a warning; argument ``text``."""
ERROR = "error"
"""The message of an error that concerns all workers; argument ``text``."""


class Orders(Stop):
    """The state of a requested stop, of which another process decides."""

    def __init__(self, stop: Callable[[], bool], overdue: Callable[[], bool]) -> None:
        super().__init__()
        self._stop, self._overdue_now = stop, overdue
        self._alone = False

    def leave(self) -> None:
        """Stop, because the first process has ended."""
        self._alone = True

    def asked(self) -> bool:
        """Whether the worker must stop at the end of its epoch."""
        return self._alone or self._stop()

    def overdue(self) -> bool:
        """Whether the worker must stop at the next step."""
        return self._overdue_now()
