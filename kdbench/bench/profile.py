"""Memory and operators of an action, from torch's profiler and allocators."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from kdbench.bench.timing import synchronize


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """The most memory that torch's allocator held during ``action``, above what it held before.

    On a CPU from the allocations and releases that the profiler records: the process's resident memory would contain
    pages that the C library keeps. What libraries allocate by themselves (oneDNN, MKL) is not contained.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _profiled(device, memory=True) as profile:
        action()
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return most_held(events)


def most_held(events: Iterable[Mapping[str, Any]]) -> int:
    """The largest sum of the first so many changes of memory in a trace; the CPU's alone count."""
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    held = most = 0
    for event in sorted(memory, key=lambda event: float(event["ts"])):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def launches(action: Callable[[], object], device: torch.device) -> int:
    """The number of kernels that ``action`` runs on a GPU (copies and fills by the driver not counted).

    On a CPU the number of operators, those that operators call included.
    """
    with _profiled(device) as profile:
        action()
        synchronize(device)
    found = profile.events() or ()
    if device.type == "cuda":
        # The ranges of optimisers are events of the device, too.
        on_device = [e.name for e in found if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        return sum(not name.startswith(("Memcpy", "Memset")) for name in on_device)
    return sum(event.name.startswith("aten::") for event in found)


def flops(action: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of ``action``, the backward pass included."""
    # torch's formula for the backward pass ignores groups: too much by a factor of 17 for a depthwise convolution of 32
    # channels.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward}) as counter:
        action()
    return int(counter.get_total_flops())


def _backward(gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **more: Any) -> int:
    """Of a convolution, from shapes: each gradient takes as many operations as the forward pass."""
    transposed, wanted = rest[4], rest[7]
    return int(2 * math.prod(x if transposed else gradient) * math.prod(weight[1:]) * sum(wanted[:2]))


def _profiled(device: torch.device, *, memory: bool = False) -> torch.profiler.profile:
    # Otherwise it writes to standard error that there is no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, profile_memory=memory)
