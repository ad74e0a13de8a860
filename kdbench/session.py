"""Signals that stop a run, and registered observers."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from rich.console import Console

from kdbench.discovery import Registry
from kdbench.terminal import leave_closed_terminal


class LeftAtOnceError(KeyboardInterrupt):
    """A second signal: the run is aborted."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Stop:
    """The state of a requested stop.

    ``grace``: seconds after the signal in which the run may still finish its epoch.
    """

    def __init__(self, grace: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal: int | None = None
        """The number of the signal that requested the stop."""
        self._grace = math.inf if grace is None else grace
        self._clock = clock
        self._deadline = math.inf

    def ask(self, number: int) -> None:
        """Request the run to stop, because of a signal."""
        self.signal = number
        self._deadline = self._clock() + self._grace

    def asked(self) -> bool:
        """Whether the run must stop at the end of its epoch."""
        return self.signal is not None

    def overdue(self) -> bool:
        """Whether the run must stop at the next step."""
        return self._clock() >= self._deadline

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name if self.signal is not None else "no signal"
        latest = "" if self._grace == math.inf else f", or in {self._grace:g} seconds if it has not ended by then"
        return f"{name}: stopping after this epoch{latest}; a second signal (Ctrl-C) aborts immediately"


STOPPING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def stop_at_signals(grace: float | None, warn: Callable[[str], None]) -> Iterator[Stop]:
    """The first Ctrl-C, SIGTERM or SIGHUP requests a stop, the second one raises :class:`LeftAtOnceError`."""
    stop = Stop(grace)
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return  # a forked worker, which receives the signals of the whole process group
        leave_closed_terminal()
        if stop.asked():
            raise LeftAtOnceError(number)
        stop.ask(number)
        # A signal may arrive during the output of a message; the stream then raises an error.
        with suppress(Exception):
            warn(str(stop))

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread receives signals
        return
    previous = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
    for number in STOPPING_SIGNALS:
        # A signal that nohup ignores stays ignored.
        if number == signal.SIGINT or previous[number] is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def registered(observers: Sequence[object], registry: Registry, warn: Callable[[str], None]) -> Iterator[None]:
    """Register observers within the context, and close them at its end."""
    names: Counter[str] = Counter()
    try:
        for observer in observers:
            name = type(observer).__name__
            names[name] += 1
            taken = names[name] > 1 or registry.manager.has_plugin(name)
            registry.manager.register(observer, name=f"{name} {names[name]}" if taken else name)
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
    """The progress display on ``console``, and MLflow unless ``tracking_uri`` is ``none``."""
    from kdbench.observers.mlflow import MlflowObserver
    from kdbench.observers.progress import ProgressObserver

    observers: list[object] = [ProgressObserver(console)]
    if tracking_uri != "none":
        observers.append(MlflowObserver(tracking_uri, warn))
    return observers
