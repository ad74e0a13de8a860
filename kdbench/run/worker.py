"""One of several processes of a run: trains what it can claim, and tells the process that started it.

The results are in the folder; what is told serves the display, MLflow and the messages of the first process.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from kdbench.claims import claiming
from kdbench.engine.cohort import Interrupted
from kdbench.engine.device import choose_device, device_name
from kdbench.environment import describe_environment
from kdbench.errors import DeviceLostError, KdbenchError, ResultsError
from kdbench.hookspecs import RunInfo
from kdbench.opening import open_suite
from kdbench.results import Failure, SuiteFolder
from kdbench.run.context import Context
from kdbench.run.loop import Loop
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
    failures: Mapping[str, Failure | None] = field(default_factory=dict)
    """See :class:`~kdbench.run.work.Work`."""


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


def work(job: Job, tell: Tell, orders: Orders, *, only_teacher: bool = False) -> None:
    """Train until nothing is left to claim, or until ``orders`` end it; with ``only_teacher``, no students."""

    def say(name: str, /, **arguments: Any) -> None:
        try:
            tell(name, **arguments)
        except (OSError, EOFError):
            orders.leave()

    try:
        _train(job, say, orders, only_teacher=only_teacher)
    except Interrupted:
        pass
    except DeviceLostError as error:
        say(WARNING, text=str(error))
        # A new process may use the device again.
        raise SystemExit(1) from error
    except KdbenchError as error:
        say(ERROR, text=str(error))


def _train(job: Job, say: Tell, orders: Orders, *, only_teacher: bool) -> None:
    try:
        os.chdir(job.folder)
    except OSError as error:
        raise ResultsError(f"{job.folder}: a worker on {platform.node()} cannot use it: {error.strerror}") from error
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    device = choose_device(job.device)
    if device.type == "cuda":
        # Events and streams use the current device.
        torch.cuda.set_device(device)
    opened = open_suite(job.suite, overrides=job.overrides, plugins=job.plugins)
    output = job.info.output.parent
    environment = {**describe_environment(), "device": device_name(device)}
    info = replace(job.info, device=str(device), environment=environment, chosen=job.chosen, worker=job.number)
    folder = SuiteFolder(output, job.info.output.name)
    if folder.plan is None:
        where = f"a worker on {platform.node()}"
        raise ResultsError(f"{folder.path}: {where} does not find it; use an --output on a shared file system")
    with claiming(output, job.lease) as claims:
        context = Context(opened, folder, info, device, say, lambda text: say(WARNING, text=text), orders, claims)
        loop = Loop(context, allow_teacher_mismatch=job.allow_teacher_mismatch, parts=job.parts or 1, wait=job.wait)
        if only_teacher:
            loop.obtain(job.teacher, job.failures)
        else:
            loop(job.chosen, job.failures)
