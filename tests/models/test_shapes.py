"""Whether a network draws random numbers in training: torch's own layers as the reference."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from kdbench.models.shapes import draws_numbers

SHAPE = (3, 8, 8)


class Jitter(nn.Module):
    """Draws from Python's generator, in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x * random.random() if self.training else x


@pytest.mark.parametrize(
    ("layer", "draws"),
    [(nn.BatchNorm2d(3), False), (nn.Dropout(0.5), True), (nn.Dropout(0.0), False), (Jitter(), True)],
)
def test_draws_in_training_are_seen_and_leave_the_generators_as_they_were(layer: nn.Module, draws: bool) -> None:
    before, python = torch.get_rng_state(), random.getstate()
    # The initialisation of weights draws as well; it has a seed of its own.
    assert draws_numbers(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), layer), SHAPE) == draws  # type: ignore[arg-type, return-value]
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
