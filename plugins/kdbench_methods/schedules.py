"""Weights that change over training."""

from __future__ import annotations

from jaxtyping import Float, Num
from torch import Tensor


def warm_up(epoch: Num[Tensor, ""], epochs: int) -> Float[Tensor, ""]:
    """A factor that increases linearly to 1: 1/epochs in epoch 0, 1 from epoch ``epochs`` - 1 on; in float64."""
    return ((epoch.double() + 1) / max(epochs, 1)).clamp(max=1.0)
