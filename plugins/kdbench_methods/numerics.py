"""Normalisation with finite values and gradients, also for zero vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ZERO_NORM = 1e-12
"""Norms up to this count as zero (the same bound as in ``torch.nn.functional.normalize``)."""


def safe_norm(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*reduced"]:
    """Euclidean norms along ``dim``, which is kept; a zero vector has norm 0 and gradient 0.

    The derivative of the square root is infinite at 0. There, the root of 1 is computed and discarded: with a
    mask on the result only, the backward pass would compute 0 * inf = NaN.
    """
    squared = x.square().sum(dim, keepdim=True)
    zero = squared <= ZERO_NORM**2
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


def unit(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Vectors along ``dim`` divided by their norms; a zero vector stays zero, with gradient 0.

    Division by a clamped norm would give gradients of the order of 1e12 for a zero vector.
    """
    norm = safe_norm(x, dim)
    zero = norm == 0
    return torch.where(zero, 0.0, x / torch.where(zero, 1.0, norm))
