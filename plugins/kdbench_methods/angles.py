"""The smooth L1 distance between the angles of all triples of two sets of embeddings, a block of vertices at a time.

For a vertex i, the cosine of the angle between e_j - e_i and e_k - e_i follows from the centred Gram matrix G and the
reciprocal distances r:

    c_ijk = (G_jk - G_ij - G_ik + G_ii) r_ij r_ik

All triples of a batch B are B^3 values. Only those of a block of vertices exist at a time. The derivative of the loss
by the embeddings is computed in the same pass, and the backward pass only scales it: nothing of size B^3 is kept. With
w_ijk = dL/dc_ijk (symmetric in j and k) and h_ijk = w_ijk r_ij r_ik, each block adds to the derivative by G

    dL/dG_jk  += sum_i h_ijk        dL/dG_ij  -= 2 sum_k h_ijk        dL/dG_ii  += sum_jk h_ijk

and, through the squared distances, dL/d(r_ij^-2) = - r_ij^2 sum_k w_ijk c_ijk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdbench_methods.gram import centred, squared_distances

BLOCK = 2**21
"""Triples that exist at a time: 16 MiB in float64. A batch of up to 128 is one block, one of 256 eight.

A GPU needs few large blocks; the time on a CPU is about the same from 2^18 to 2^21.
"""


@dataclass(frozen=True)
class Relations:
    """What the cosines of all triples of a batch follow from. Directions between equal points count as zero."""

    G: Float[Tensor, "batch batch"]
    """Centred Gram matrix, in float64."""
    inverse: Float[Tensor, "batch batch"]
    """1 / |e_i - e_j|, 0 for equal points, in the precision of the embeddings (at least float32)."""

    @classmethod
    def of(cls, e: Float[Tensor, "batch width"], dtype: torch.dtype) -> Relations:
        """The relations of embeddings of precision ``dtype``; ``e`` are the centred ones, in float64."""
        G = e @ e.T
        squared, coincident = squared_distances(G, torch.finfo(dtype).eps)
        # A half precision cannot represent the products of small differences.
        at_least_float32 = torch.promote_types(dtype, torch.float32)
        return cls(G, torch.where(coincident, 0.0, squared.rsqrt()).to(at_least_float32))

    def cosines(self, vertices: slice) -> Float[Tensor, "block batch batch"]:
        """[i, j, k] is the cosine, at vertex i of the block, of the angle between e_j - e_i and e_k - e_i."""
        # Only the differences need float64.
        at_vertex = self.G[vertices]
        own = self.G.diagonal()[vertices, None]
        inner = self.G - at_vertex[:, :, None]
        inner -= (at_vertex - own)[:, None, :]
        cosines = inner.to(self.inverse.dtype)
        inverse = self.inverse[vertices]
        cosines *= inverse[:, :, None]
        cosines *= inverse[:, None, :]
        return cosines


def blocks(B: int) -> Iterator[slice]:
    """Blocks of vertices with at most :data:`BLOCK` triples; their number depends on the batch size alone."""
    vertices = max(1, BLOCK // max(B * B, 1))
    return (slice(start, min(start + vertices, B)) for start in range(0, B, vertices))


class AngleDifference(torch.autograd.Function):
    """``AngleDifference.apply(s, t)``: mean over all B^3 triples of the smooth L1 distance (beta 1) of the cosines.

    Differentiable once, and with respect to ``s`` alone; with ``create_graph=True`` it raises ``RuntimeError``.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor) -> Tensor:
        """The loss in the precision of ``s``. Its derivative is computed in the same pass, where one is asked for."""
        B = len(s)
        e = centred(s)
        own, theirs = Relations.of(e, s.dtype), Relations.of(centred(t), t.dtype)
        slope = _Slope(own) if ctx.needs_input_grad[0] else None
        total = own.G.new_zeros(())
        for vertices in blocks(B):
            c, target = own.cosines(vertices), theirs.cosines(vertices)
            total += F.smooth_l1_loss(c, target, reduction="sum")
            if slope is not None:
                slope.add(vertices, c, c.sub(target).clamp_(-1, 1))
        if slope is not None:
            ctx.save_for_backward((slope.by_embeddings(e) / B**3).to(s.dtype))
        return (total / B**3).to(s.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The derivative by the embeddings of the student."""
        if torch.is_grad_enabled():
            # It would count as a constant: torch refuses only to differentiate by ``gradient``.
            raise RuntimeError("the angle term of RKD has no second derivative; use create_graph=False")
        [derivative] = ctx.saved_tensors
        return derivative * gradient, None


class _Slope:
    """The derivative of the summed loss by the Gram matrix, from the derivatives by the cosines of each block."""

    def __init__(self, relations: Relations) -> None:
        self._inverse = relations.inverse
        self._by_G = torch.zeros_like(relations.G)
        self._by_squared = torch.empty_like(relations.G)

    def add(self, vertices: slice, c: Tensor, w: Tensor) -> None:
        """``c`` are the cosines (block, B, B) of the vertices, ``w`` the derivatives by them; both are overwritten."""
        inverse = self._inverse[vertices]
        self._by_squared[vertices] = -inverse.square() * c.mul_(w).sum(2)
        h = w.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])
        rows = h.sum(2)
        self._by_G += h.sum(0)
        self._by_G[vertices].sub_(rows, alpha=2)
        self._by_G.diagonal()[vertices].add_(rows.sum(1))

    def by_embeddings(self, e: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """The derivative by the embeddings, of which ``e`` are the centred ones."""
        by_G = self._by_G - 2 * self._by_squared
        by_G.diagonal().add_(self._by_squared.sum(0) + self._by_squared.sum(1))
        return (by_G + by_G.T) @ e
