"""Workers as processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from kdbench.run.executor import Session
from kdbench.run.worker import Job, Orders, work
from kdbench.session import STOPPING_SIGNALS
from kdbench.words import plural

POLL_SECONDS = 0.2
FRUITLESS_DEATHS = 3
"""A worker that died so often in a row, without a message before, is not started again."""


@dataclass
class _Worker:
    """One process at a time, for one job."""

    job: Job
    process: multiprocessing.process.BaseProcess
    messages: Connection
    heard: bool = False
    """Whether this process has sent a message."""
    fruitless: int = 0

    def __str__(self) -> str:
        return f"worker {self.job.number} ({self.job.device})"


class Processes:
    """Processes of this machine.

    Each is started anew, not forked: CUDA and threads do not survive a fork.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._overdue = self._context.Event()

    def __call__(self, jobs: Sequence[Job], session: Session) -> None:
        """Run all jobs; see :class:`~kdbench.run.executor.Executor`."""
        workers: list[_Worker] = []
        try:
            workers += [_Worker(job, *self._start(job)) for job in jobs]
            while workers:
                self._pass_on(session)
                wait([source for one in workers for source in (one.messages, one.process.sentinel)], POLL_SECONDS)
                for one in list(workers):
                    ended = one.process.exitcode is not None
                    _listen(one, session)
                    if ended and not self._continues(one, session):
                        workers.remove(one)
        finally:
            for one in workers:
                one.process.kill()
            for one in workers:
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
        if session.stop.asked():
            self._stop.set()
        if session.stop.overdue():
            self._overdue.set()

    def _continues(self, one: _Worker, session: Session) -> bool:
        """Start a worker again that died; False if it has ended."""
        _listen(one, session)
        code = one.process.exitcode
        one.messages.close()
        one.process.join()
        if code == 0 or session.stop.asked():
            return False
        one.fruitless = 0 if one.heard else one.fruitless + 1
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        if one.fruitless >= FRUITLESS_DEATHS:
            session.warn(f"{one} died {plural(one.fruitless, 'time')} at its start ({how}); it is not started again")
            return False
        session.warn(f"{one} died ({how}); another one takes over from the last checkpoints")
        one.process, one.messages = self._start(one.job)
        one.heard = False
        return True


def _listen(one: _Worker, session: Session) -> None:
    """Pass the messages on that have arrived."""
    # A process that was killed while it sent one has sent a part of it.
    with suppress(EOFError, OSError):
        while one.messages.poll():
            name, arguments = one.messages.recv()
            one.heard = True
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
    parent = multiprocessing.parent_process()

    def is_to_stop() -> bool:
        return stop.is_set() or (parent is not None and not parent.is_alive())

    def tell(name: str, /, **arguments: Any) -> None:
        messages.send((name, arguments))

    work(job, tell, Orders(is_to_stop, overdue.is_set))
