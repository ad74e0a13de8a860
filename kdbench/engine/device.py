"""Devices, precision, and timing that does not stop the device."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from kdbench.errors import KdbenchError


def choose_device(name: str) -> torch.device:
    """Select ``auto`` (a GPU if available), ``cpu``, ``cuda`` or ``cuda:N``."""
    # Read when CUDA starts: with the default of 8, streams of more students than that wait for each other.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind not in {"cpu", "cuda"} or (index and (kind == "cpu" or not index.isdigit())):
        raise KdbenchError(f"--device {name}: must be auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(index or 0)
    if number >= count:
        raise KdbenchError(
            f"--device {name}: this machine has {count} usable GPU(s)" + ("; use cpu" if not count else "")
        )
    return torch.device("cuda", number)


def device_name(device: torch.device) -> str:
    """The GPU's product name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def responds(device: torch.device) -> bool:
    """Whether the device still works; waits for it. After a device-side assert it is lost to the whole process."""
    try:
        return torch.ones((), device=device).item() == 1
    except RuntimeError:
        return False


@dataclass(frozen=True)
class Precision:
    """How networks train: ``float32``, ``tf32`` (convolutions) or ``bf16``. Losses and measurements are never bf16."""

    device: torch.device
    name: str

    @classmethod
    def choose(cls, name: str, device: torch.device) -> Precision:
        """``auto`` is bf16 autocast on a GPU, float32 on a CPU; tf32 on a CPU is float32."""
        gpu = device.type == "cuda"
        if name == "auto":
            name = "bf16" if gpu else "float32"
        if name == "tf32" and not gpu:
            name = "float32"
        return cls(device, name)

    def prepare(self, *, deterministic: bool = False) -> None:
        """Set the process-wide options. ``deterministic``: algorithms that give the same bits in each run."""
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = self.name == "tf32"
            # Losses contain small differences of matrix products, which the 10-bit mantissa of TF32 loses.
            torch.backends.cuda.matmul.allow_tf32 = False
            # The fastest algorithm may be another one in each run.
            torch.backends.cudnn.benchmark = not deterministic
            torch.backends.cudnn.deterministic = deterministic
            torch.use_deterministic_algorithms(deterministic, warn_only=True)

    def autocast(self) -> AbstractContextManager[object]:
        """The context for the networks' forward passes."""
        if self.name == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Context of what is measured: convolutions in float32, also if those of the training are in TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


@dataclass
class Stopwatch:
    """Sums the time spent between :meth:`start` and :meth:`stop`.

    On a GPU it records events and reads them once per epoch, so that timing a step does not wait for the GPU.
    """

    device: torch.device
    seconds: float = 0.0
    _began: float = 0.0
    _open: torch.cuda.Event | None = None
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    _spare: list[torch.cuda.Event] = field(default_factory=list)
    """Events that were read, to be recorded again."""

    def start(self) -> None:
        """Begin an interval."""
        if self.device.type == "cuda":
            self._open = self._event()
            self._open.record()
        else:
            self._began = time.perf_counter()

    def stop(self) -> None:
        """End the interval. An interval that an error ended early is not counted."""
        if self._open is not None:
            end = self._event()
            end.record()
            self._events.append((self._open, end))
        else:
            self.seconds += time.perf_counter() - self._began

    def read(self) -> float:
        """Seconds since the last read; waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
            self.seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._spare += [event for interval in self._events for event in interval]
            self._events.clear()
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _event(self) -> torch.cuda.Event:
        return self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
