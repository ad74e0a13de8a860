"""Gram matrices of centred embeddings, and the squared distances that they give, without loss of digits.

Both are computed in float64: in float32, the distance of pairs closer than 0.3 % of their norms would be lost.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def centred(e: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """The embeddings minus their mean, in float64.

    A common shift of all embeddings does not change distances and angles, but it changes their rounding errors.
    """
    e = e.double()
    # Detached: the losses do not depend on the centre, so its gradient is zero up to rounding.
    return e - e.detach().mean(0)


def gram_matrix(e: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
    """Inner products, in float64, of the embeddings minus their mean."""
    e = centred(e)
    return e @ e.T


def squared_distances(
    G: Float[Tensor, "batch batch"], eps: float
) -> tuple[Float[Tensor, "batch batch"], Bool[Tensor, "batch batch"]]:
    """Squared distances G_ii + G_jj - 2 G_ij, and a mask of those that are zero up to rounding (and set to 1).

    A distance has no gradient at 0, and the direction between equal points is undefined. Embeddings e_i and
    e_j count as equal if their distance is at most 64 ``eps`` of sqrt(|e_i|^2 + |e_j|^2), centred: 8e-6 for
    embeddings in float32. For float64 the bound is 1.2e-7, the rounding of the Gram matrix.

    Args:
        G: centred Gram matrix in float64.
        eps: machine epsilon of the embeddings that G comes from.
    """
    norms = G.diagonal()
    total = norms[:, None] + norms[None, :]
    squared = total - 2 * G
    coincident = squared <= max((64 * eps) ** 2, 64 * torch.finfo(G.dtype).eps) * total
    return torch.where(coincident, 1.0, squared), coincident
