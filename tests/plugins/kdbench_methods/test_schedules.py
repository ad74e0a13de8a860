from __future__ import annotations

import pytest
import torch
from kdbench_methods.schedules import warm_up


def test_rises_by_equal_steps():
    values = [warm_up(torch.tensor(epoch), 4).item() for epoch in range(6)]
    assert values == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_none_is_full_at_once():
    assert warm_up(torch.tensor(0), 0).item() == pytest.approx(1.0)


def test_is_exact_beyond_float32():
    """The engine's epoch is float32, in which 1/20 is off by 1e-8."""
    assert warm_up(torch.tensor(0.0), 20).item() == 1 / 20
