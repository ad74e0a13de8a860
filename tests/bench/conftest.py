"""A clock that is set by hand, and sessions on tiny images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kdbench.bench.budget import Budget
from kdbench.bench.findings import Findings
from kdbench.bench.session import Session
from kdbench.bench.world import World
from kdbench.discovery import discover

CPU = torch.device("cpu")


class Clock:
    """Tells the time that it is set to; ``step`` passes with each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 100.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(tmp_path) -> Callable[..., Session]:
    """``session(part, seconds=60, clock=...)``: one whose part has begun."""

    def make(part: str, seconds: float = 60.0, clock: Callable[[], float] | None = None) -> Session:
        clock = clock or Clock()
        budget = Budget(seconds, {part: 1.0}, clock)
        budget.begin(part)
        return Session(CPU, discover(), Findings(), budget, tmp_path, part)

    return make


@pytest.fixture
def tiny(tmp_path) -> World:
    """Images of 8 pixels in ten classes."""
    return World(discover(), CPU, tmp_path, image_shape=(3, 8, 8), classes=10, n_train=96)


@pytest.fixture(autouse=True)
def _same_threads_and_options():
    """Measuring sets options of the process."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    assert torch.backends.cuda.matmul.allow_tf32 == before
