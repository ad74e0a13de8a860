"""What surrounds a run: nobody else at work in its folders, Ctrl-C, and observers that listen."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from filelock import FileLock, Timeout
from rich.console import Console

from kdbench.engine.cohort import Interrupted
from kdbench.errors import ResultsError
from kdbench.plugins import Registry
from kdbench.results import SuiteFolder, TrialFolder


@contextmanager
def only_one_run(folder: SuiteFolder) -> Iterator[None]:
    """Refuse to work where another run does; make the folder where there is none."""
    lock = FileLock(folder.path / ".lock", timeout=0)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ResultsError(f"{folder.path}: another kdbench run is working here; wait for it or stop it") from None
    except OSError as error:
        raise ResultsError(f"{folder.path}: cannot be written: {error.strerror or error}") from error
    try:
        folder.remove_leftovers()
        yield
    finally:
        lock.release()


@contextmanager
def alone_with(folder: TrialFolder, stopping: threading.Event, warn: Callable[[str], None]) -> Iterator[None]:
    """Suites share teachers: the second run waits until the first has trained it."""
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.path / ".lock")
    waiting = False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            if not waiting:
                warn(f"{folder.path}: another run trains this teacher; waiting for it")
            waiting = True
            if stopping.is_set():
                raise Interrupted("interrupted") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stop_at_interrupt(warn: Callable[[str], None]) -> Iterator[threading.Event]:
    """The first Ctrl-C asks the engine to stop at the epoch's end, the second one stops at once."""
    stopping = threading.Event()
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return  # a worker that was forked from here, and gets the terminal's signal too
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        warn("stopping after this epoch; press Ctrl-C again to leave at once (back to the last checkpoint)")

    if threading.current_thread() is not threading.main_thread():
        yield stopping  # signals reach the main thread alone
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def registered(observers: Sequence[object], registry: Registry, warn: Callable[[str], None]) -> Iterator[None]:
    """Observers listen for as long as this lasts, and are closed however it ends."""
    try:
        for number, observer in enumerate(observers):
            registry.manager.register(observer, name=f"{type(observer).__name__} {number}")
        yield
    finally:
        for observer in observers:
            close = getattr(observer, "close", None)
            try:
                if close is not None:
                    close()
            except Exception as error:  # noqa: BLE001 - an observer costs no run
                warn(f"observer '{type(observer).__name__}' failed to close: {type(error).__name__}: {error}")


def default_observers(tracking_uri: str | None, console: Console, warn: Callable[[str], None]) -> list[object]:
    """The progress display on ``console``, and MLflow unless it is told ``none``."""
    from kdbench.observers.mlflow import MlflowObserver
    from kdbench.observers.progress import ProgressObserver

    observers: list[object] = [ProgressObserver(console)]
    if tracking_uri != "none":
        observers.append(MlflowObserver(tracking_uri, warn))
    return observers
