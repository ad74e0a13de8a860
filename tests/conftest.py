"""What all tests share."""

from __future__ import annotations

import pytest
import torch

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Relative difference to an independent computation that is put down to rounding."""


@pytest.fixture
def tolerance() -> dict[torch.dtype, float]:
    return TOLERANCE
