"""Attention transfer: the student learns the teacher's spatial attention maps.

Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, https://arxiv.org/abs/1612.03928
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, Signature, Terms
from kdbench_methods.numerics import unit
from kdbench_methods.pairing import pair_stages, pool_to_smaller


def attention(f: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch pixels"]:
    """Q: mean over channels of f^2, flattened and L2-normalised."""
    return unit(f.square().mean(1).flatten(1), dim=1)


def attention_loss(s: Float[Tensor, "batch c h w"], t: Float[Tensor, "batch d k l"]) -> Float[Tensor, ""]:
    """Mean squared difference of the attention maps, at the smaller map's size.

    Args:
        s: map of the student.
        t: map of the teacher.

    Reference: https://arxiv.org/abs/1612.03928, equation 2
    """
    s, t = pool_to_smaller(s, t.detach())
    return (attention(s) - attention(t)).square().mean()


class AT(Method):
    """Attention maps of all stages, matched to the teacher's."""

    paper = "Zagoruyko and Komodakis, ICLR 2017, https://arxiv.org/abs/1612.03928"
    reads = frozenset({"logits", "stage*"})

    def __init__(self, *, ce_weight: NonNegative = 1.0, at_weight: NonNegative = 1000.0) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.at_weight = at_weight

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Check that stages can be paired; nothing to build."""
        pair_stages(student, teacher, "at")

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, and ``at``: the sum over the stages."""
        pairs = zip(student.stages, teacher.stages, strict=True)
        at = torch.stack([attention_loss(s, t) for s, t in pairs]).sum()
        return {"ce": (batch.cross_entropy(student.logits), self.ce_weight), "at": (at, self.at_weight)}
