"""Normalisation that stays finite, with finite gradients, where a vector has no direction."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ZERO_NORM = 1e-12
"""Norms up to this count as zero (the bound that ``torch.nn.functional.normalize`` has, too)."""


def safe_norm(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*reduced"]:
    """Euclidean norms along ``dim``, which is kept; a zero vector has norm 0 and gradient 0.

    The square root's slope is infinite at 0: it is taken of 1 there and its result is discarded, because
    masking the result alone would still let 0 * inf = NaN through the backward pass.
    """
    squared = x.square().sum(dim, keepdim=True)
    zero = squared <= ZERO_NORM**2
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


def unit(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Vectors along ``dim`` divided by their norms; a zero vector stays zero, with gradient 0.

    Dividing by a clamped norm instead would give a dead unit's row gradients of the order of 1e12.
    """
    norm = safe_norm(x, dim)
    zero = norm == 0
    return torch.where(zero, 0.0, x / torch.where(zero, 1.0, norm))
