"""Signs of life: a counter that each process increases in its file, and how others interpret it.

A process is dead for its observers if its counter has not changed for as long as its lease, measured by the observer's
own clock from the moment when the observer first saw the value. No two clocks are compared.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.machine import is_alive, this_machine

LEASE_SECONDS = 60.0
"""After this time without a sign of life, others take over what a process holds."""
BEATS_PER_LEASE = 6
_SAFE = 0.5
"""Within this share of its lease after a sign of life, a process may rely on what it holds."""
_LENGTH = 512
"""Bytes of the file: it is written in place, at once, because some network file systems show renamed files late."""


def steady_seconds() -> float:
    """A clock that never decreases, and includes the time in which the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(frozen=True)
class Holder:
    """What a process says about itself."""

    owner: str
    host: str
    pid: int
    machine: str
    lease: float
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Heartbeat:
    """This process's sign of life in ``folder``, renewed by a thread.

    ``lease``: seconds; see :data:`LEASE_SECONDS`.
    """

    def __init__(self, folder: Path, lease: float = LEASE_SECONDS, clock: Callable[[], float] = steady_seconds) -> None:
        host = "".join(c if c.isalnum() or c in "-_" else "_" for c in platform.node())[:60] or "unknown"
        self.owner = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.folder = folder
        self.lease = lease
        self._clock = clock
        self._said = Holder(self.owner, host, os.getpid(), this_machine(), lease)
        self._lock = threading.Lock()
        self._last = -float("inf")
        self._gaps = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kdbench-heartbeat", daemon=True)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.owner

    def start(self) -> None:
        """Give the first sign of life, and renew it until :meth:`stop`. Raises ``OSError``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.beat()
        self._thread.start()

    def stop(self) -> None:
        """Remove the file: this process is dead for others."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    @property
    def gaps(self) -> int:
        """How often others may have taken this process for dead."""
        return self._gaps

    def is_sound(self, gaps: int) -> bool:
        """Whether nobody can have taken this process for dead since ``gaps`` was read."""
        with self._lock:
            return self._gaps == gaps and self._clock() - self._last <= self.lease * _SAFE

    def beat(self) -> None:
        """Give a sign of life. Raises ``OSError``."""
        began = self._clock()
        self._said = replace(self._said, beat=self._said.beat + 1)
        missing = not self._write()
        with self._lock:
            if self._last > -float("inf") and (missing or began - self._last > self.lease * _SAFE):
                self._gaps += 1
            # The time before it was written: others cannot have seen it earlier.
            self._last = began

    def _write(self) -> bool:
        """Write the file in place; False if it was missing and had to be created."""
        content = json.dumps(asdict(self._said)).encode().ljust(_LENGTH)
        found = True
        try:
            descriptor = os.open(self.path, os.O_WRONLY)
        except FileNotFoundError:
            found = False
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return found

    def _work(self) -> None:
        while not self._ended.wait(self.lease / BEATS_PER_LEASE):
            # A full disk may have room again; until then, nothing that this process holds counts as safe.
            with suppress(OSError):
                self.beat()


class Watch:
    """What this process knows about the signs of life of others."""

    def __init__(self, folder: Path, clock: Callable[[], float] = steady_seconds) -> None:
        self._folder = folder
        self._clock = clock
        self._machine = this_machine()
        self._seen: dict[object, tuple[object, float]] = {}
        self._changed: set[object] = set()

    def living(self, owner: str) -> Holder | None:
        """What a process says about itself; None if it is dead, so that what it holds may be taken over."""
        holder, content = self._read(owner)
        if content is None:
            return None
        if holder is None:
            unread = Holder(owner, owner, 0, "", LEASE_SECONDS)
            return None if self.is_unchanged(owner, content, LEASE_SECONDS) else unread
        if holder.machine == self._machine and not is_alive(holder.pid):
            return None
        return None if self.is_unchanged(owner, holder.beat, holder.lease) else holder

    def forget_dead(self) -> None:
        """Remove the files of dead processes of this machine."""
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            holder, _ = self._read(path.name)
            if holder is not None and holder.machine == self._machine and not is_alive(holder.pid):
                with suppress(OSError):
                    path.unlink()

    def is_certain(self, owner: str) -> bool:
        """Whether a process is known to live: it is one of this machine, or its sign of life has changed.

        Others may have died before this process looked for the first time. After their lease, it is known.
        """
        holder, _ = self._read(owner)
        if holder is not None and holder.machine == self._machine:
            return True
        return owner in self._changed

    def is_unchanged(self, key: object, value: object, seconds: float) -> bool:
        """Whether ``key`` has had this value for so long, at each look of this process."""
        known, since = self._seen.get(key, (None, 0.0))
        if known != value or key not in self._seen:
            if key in self._seen:
                self._changed.add(key)
            self._seen[key] = value, self._clock()
            return False
        return self._clock() - since >= seconds

    def _read(self, owner: str) -> tuple[Holder | None, bytes | None]:
        try:
            content = (self._folder / owner).read_bytes()
        except FileNotFoundError:
            return None, None
        except OSError:
            return None, b""
        try:
            said: dict[str, Any] = json.loads(content)
            return Holder(**said), content
        except (ValueError, TypeError):
            return None, content
