"""What the hardware gives: versions, the bandwidth of a copy, the rate of a matrix product."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kdbench.bench.timing import repeated
from kdbench.engine.device import device_name
from kdbench.environment import describe_environment
from kdbench.machine import cpu_model

COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Larger than any cache."""
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


def facts(device: torch.device) -> dict[str, Any]:
    """Versions of software, and what the hardware is called."""
    found: dict[str, Any] = {
        **describe_environment(),
        "device": device_name(device),
        "cpu": cpu_model(),
        "cpu_cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "blas": _blas(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu_memory_bytes"] = properties.total_memory
        found["gpu_compute_capability"] = f"{properties.major}.{properties.minor}"
    return found


def _blas() -> str | None:
    """The name of the library that torch was built with."""
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found[1] if found else None


def copy_rates(device: torch.device, seconds: float, size: int | None = None) -> list[float]:
    """Bytes per second, read and written, of copies from one place in the device's memory to another."""
    size = size or COPY_BYTES[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return [2 * size / time for time in repeated(lambda: target.copy_(source), device, seconds)]


def matrix_rates(device: torch.device, precision: str, seconds: float, side: int | None = None) -> list[float]:
    """Operations per second of the product of two square matrices, in ``float32``, ``tf32`` or ``bf16``."""
    side = side or MATRIX_SIDE[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    with _tf32(precision == "tf32"):
        return [2 * side**3 / time for time in repeated(lambda: torch.mm(a, b, out=out), device, seconds)]


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
