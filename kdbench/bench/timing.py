"""Times of short actions on a device: waits for a GPU before and after, and warms up."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

MOST = 200
"""Repetitions."""


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """The time of one call: of CUDA events on a GPU, of the wall clock on a CPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record(torch.cuda.current_stream(device))
    action()
    end.record(torch.cuda.current_stream(device))
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def repeated(
    action: Callable[[], object], device: torch.device, seconds: float, *, least: int = 3, warm_up: int = 1
) -> list[float]:
    """Times of several calls, after ``warm_up`` ones that do not count: at least ``least``, else for ``seconds``."""
    for _ in range(warm_up):
        seconds_of(action, device)
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < MOST):
        times.append(seconds_of(action, device))
    return times


def paired(
    action: Callable[[], object], other: Callable[[], object], device: torch.device, seconds: float, *, least: int = 3
) -> list[float]:
    """Ratios of the times of two actions, each of calls directly after one another; which comes first alternates.

    At least ``least`` ratios, else for ``seconds``, after one call of each that does not count.
    """
    actions = action, other
    for each in actions:
        seconds_of(each, device)
    ratios: list[float] = []
    spent = 0.0
    while len(ratios) < least or (spent < seconds and len(ratios) < MOST):
        times = [0.0, 0.0]
        for place in (0, 1) if len(ratios) % 2 else (1, 0):
            times[place] = seconds_of(actions[place], device)
        ratios.append(times[0] / times[1])
        spent += sum(times)
    return ratios
