"""Neuron selectivity transfer: match the spatial distributions of the student's and teacher's channels.

Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
https://arxiv.org/abs/1707.01219
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, Signature, Terms
from kdbench_methods.numerics import unit
from kdbench_methods.pairing import pair_stages, pool_to_smaller


def mean_kernel(x: Float[Tensor, "batch c pixels"], y: Float[Tensor, "batch d pixels"]) -> Float[Tensor, ""]:
    """Mean of (x_i . y_j)^2 over the batch and all pairs of channels, by one matrix product."""
    return (x @ y.mT).square().mean()


def selectivity_loss(s: Float[Tensor, "batch c h w"], t: Float[Tensor, "batch d k l"]) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy of the channels' spatial patterns, under the kernel (x . y)^2.

    Args:
        s: map of the student.
        t: map of the teacher.

    Reference: https://arxiv.org/abs/1707.01219, equation 6
    """
    s, t = pool_to_smaller(s, t.detach())
    x, y = unit(s.flatten(2), dim=2), unit(t.flatten(2), dim=2)
    return mean_kernel(y, y) + mean_kernel(x, x) - 2 * mean_kernel(x, y)


class NST(Method):
    """Maximum mean discrepancy between both networks' channels, at all stages."""

    paper = "Huang and Wang, 2017, https://arxiv.org/abs/1707.01219"
    reads = frozenset({"logits", "stage*"})

    def __init__(self, *, ce_weight: NonNegative = 1.0, nst_weight: NonNegative = 50.0) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.nst_weight = nst_weight

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Check that stages can be paired; nothing to build."""
        pair_stages(student, teacher, "nst")

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, and ``nst``: the sum over the stages."""
        pairs = zip(student.stages, teacher.stages, strict=True)
        nst = torch.stack([selectivity_loss(s, t) for s, t in pairs]).sum()
        return {"ce": (batch.cross_entropy(student.logits), self.ce_weight), "nst": (nst, self.nst_weight)}
