"""Workers as processes of this machine."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from kdbench.run.executor import Session
from kdbench.run.job import Job, Orders
from kdbench.run.worker import work
from kdbench.session import STOPPING_SIGNALS
from kdbench.terminal import outlive_terminals
from kdbench.words import plural

POLL_SECONDS = 0.2
FRUITLESS_DEATHS = 16
"""A worker that died so often in a row, without progress between, is not started again: a trial that kills is found
after some halvings."""
SILENT_DEATHS = 3
"""The same for one that never sent a message: it dies at its start."""
PROGRESS = {
    "kdbench_teacher_epoch_finished",
    "kdbench_epoch_finished",
    "kdbench_trial_finished",
    "kdbench_trial_failed",
}
LEAVING_SECONDS = 5.0
"""Time for workers to leave by themselves after a second signal."""


@dataclass
class _Worker:
    """One process at a time, for one job."""

    job: Job
    process: multiprocessing.process.BaseProcess
    messages: Connection
    heard: bool = False
    """Whether this process has told of progress."""
    spoke: bool = False
    """Whether any process of this worker has sent a message."""
    fruitless: int = 0
    """Processes in a row that died without progress."""

    def __str__(self) -> str:
        return f"worker {self.job.number} ({self.job.device})"


class Processes:
    """Processes of this machine.

    Each is a new process, not a fork: CUDA and threads do not survive a fork.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        # Without a lock, as events have one: a process that is killed while it looks would keep it for ever.
        self._stop = self._context.RawValue("b", 0)
        self._overdue = self._context.RawValue("b", 0)

    def __call__(self, jobs: Sequence[Job], session: Session) -> None:
        """Run all jobs; see :class:`~kdbench.run.executor.Executor`."""
        workers: list[_Worker] = []
        try:
            for job in jobs:
                workers.append(_Worker(job, *self._start(job)))
            while workers:
                self._pass_on(session)
                wait([source for one in workers for source in (one.messages, one.process.sentinel)], POLL_SECONDS)
                for one in list(workers):
                    ended = one.process.exitcode is not None
                    # One message in a turn: another worker, or a requested stop, may be waiting.
                    _listen(one, session, 1)
                    if ended and not self._continues(one, session):
                        workers.remove(one)
        finally:
            # After a second Ctrl-C: a worker that leaves by itself gives its trials up.
            self._stop.value = self._overdue.value = 1
            deadline = time.monotonic() + LEAVING_SECONDS
            for one in workers:
                one.process.join(max(0.0, deadline - time.monotonic()))
            for one in workers:
                one.process.kill()
                one.process.join()

    def _start(self, job: Job) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        receiver, sender = self._context.Pipe(duplex=False)
        name = f"kdbench worker {job.number}"
        process = self._context.Process(target=_main, args=(job, sender, self._stop, self._overdue), name=name)
        with _without_signals():
            process.start()
        # Closed here, so that the end of the process is the end of its messages.
        sender.close()
        return process, receiver

    def _pass_on(self, session: Session) -> None:
        self._stop.value = session.stop.asked()
        self._overdue.value = session.stop.overdue()

    def _continues(self, one: _Worker, session: Session) -> bool:
        """Start a worker again that died; False if it has ended."""
        _listen(one, session)
        code = one.process.exitcode
        one.messages.close()
        one.process.join()
        if code == 0 or session.stop.asked():
            return False
        one.fruitless = 0 if one.heard else one.fruitless + 1
        how = _how(code)
        if one.fruitless >= (FRUITLESS_DEATHS if one.spoke else SILENT_DEATHS):
            deaths = plural(one.fruitless, "time")
            session.warn(f"{one} died {deaths} without progress ({how}); it is not started again")
            return False
        session.warn(f"{one} died ({how}); another one takes over from the last checkpoints")
        one.process, one.messages = self._start(one.job)
        one.heard = False
        return True


def _how(code: int | None) -> str:
    """How a process ended: by which signal, or with which exit code."""
    try:
        return signal.Signals(-(code or 0)).name
    except ValueError:  # no signal, or one without a name
        return f"exit code {code}"


def _listen(one: _Worker, session: Session, most: float = math.inf) -> None:
    """Pass the messages on that have arrived."""
    heard = 0
    # A process that was killed while it sent one has sent a part of it.
    with suppress(EOFError, OSError):
        while heard < most and one.messages.poll():
            name, arguments = one.messages.recv()
            heard += 1
            one.spoke = True
            one.heard = one.heard or name in PROGRESS
            session.hear(one.job, name, arguments)


@contextmanager
def _without_signals() -> Iterator[None]:
    """Processes started within are not reached by the signals that stop a run: the first process passes them on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _main(job: Job, messages: Connection, stop: Any, overdue: Any) -> None:
    """The worker's process."""
    for number in STOPPING_SIGNALS:
        signal.signal(number, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)
    outlive_terminals()
    parent = multiprocessing.parent_process()

    def is_to_stop() -> bool:
        return bool(stop.value) or (parent is not None and not parent.is_alive())

    def tell(name: str, /, **arguments: Any) -> None:
        messages.send((name, arguments))

    work(job, tell, Orders(is_to_stop, lambda: bool(overdue.value)))
