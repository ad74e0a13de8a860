"""What belongs to the whole process: settings of torch, random streams, the working folder."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def state() -> dict[str, Any]:
    """Each value by what it is called in a message."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "the number of threads": torch.get_num_threads(),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "the stream of random": random.getstate(),
        "the stream of numpy.random": pickle.dumps(np.random.get_state()),
        "the working folder": os.getcwd(),
    }


@contextmanager
def kept() -> Iterator[None]:
    """Restore the state on leaving."""
    before = state()
    try:
        yield
    finally:
        torch.set_default_dtype(before["the default dtype"])
        if torch.get_default_device() != before["the default device"]:
            torch.set_default_device(before["the default device"])
        torch.set_grad_enabled(before["grad mode"])
        torch.set_autocast_enabled("cpu", before["autocast"])
        torch.set_num_threads(before["the number of threads"])
        torch.set_float32_matmul_precision(before["the precision of float32 products"])
        torch.use_deterministic_algorithms(before["deterministic algorithms"])
        torch.backends.cudnn.benchmark = before["cudnn.benchmark"]
        random.setstate(before["the stream of random"])
        np.random.set_state(pickle.loads(before["the stream of numpy.random"]))
        os.chdir(before["the working folder"])
