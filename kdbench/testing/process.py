"""Process-wide state: settings of torch, random streams, the working folder."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from kdbench.isolation import restored


def state() -> dict[str, Any]:
    """Each value by its name in messages."""
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
    """On exit, restore the state that :mod:`kdbench.isolation` checks, and that of ``random`` and ``numpy.random``."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with restored():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
