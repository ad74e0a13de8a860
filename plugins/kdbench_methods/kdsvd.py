"""Knowledge distillation by singular value decomposition: changes of a map's main direction between stages.

Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
https://arxiv.org/abs/1807.06819
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.method import (
    Batch,
    DataSignature,
    Incompatible,
    Method,
    NonNegative,
    Output,
    Signature,
    Terms,
)
from kdbench_methods.numerics import unit
from kdbench_methods.pairing import pair_stages

CANDIDATES = 4
"""Number of directions of the student, from which the nearest to the teacher's first is selected."""


def main_directions(f: Float[Tensor, "batch c h w"], k: int) -> Float[Tensor, "batch c k"]:
    """The k first right singular vectors of each (H*W, C) map.

    They are eigenvectors v of A = x^T x. To first order dv_i = sum_j v_j (v_j . dA v_i) / (l_i - l_j), which
    is infinite if two singular values are equal, as in a constant map; such pairs are left out here. The
    value comes from the decomposition, the gradient from this sum.

    A singular vector's sign is arbitrary: here its entry of largest magnitude is positive.
    """
    x = f.flatten(2).mT
    A = x.mT @ x
    scale = A.detach().diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    A = A / torch.where(scale > 0, scale, 1.0)
    values, vectors = torch.linalg.eigh(A.detach())
    values, vectors = values.flip(1), with_fixed_sign(vectors.flip(2))
    first = vectors[:, :, :k]
    gap = values[:, None, :k] - values[:, :, None]
    distinct = gap.abs() > 100 * torch.finfo(f.dtype).eps
    inverse_gap = torch.where(distinct, 1 / torch.where(distinct, gap, 1.0), 0.0)
    change = vectors.mT @ (A - A.detach()) @ first
    directions: Tensor = first + vectors @ (inverse_gap * change)
    return directions


def with_fixed_sign(v: Float[Tensor, "batch c k"]) -> Float[Tensor, "batch c k"]:
    """Each vector along the second axis, with the sign that makes its entry of largest magnitude positive."""
    largest = v.gather(1, v.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -v, v)


def nearest_direction(s: Float[Tensor, "batch c k"], t: Float[Tensor, "batch c"]) -> Float[Tensor, "batch c"]:
    """The one of k directions that is nearest to ``t`` up to its sign, with the sign of the nearer side."""
    cosine = (s.detach() * t[:, :, None]).sum(1)
    index = cosine.abs().argmax(1, keepdim=True)
    sign = torch.where(cosine.gather(1, index) < 0, -1.0, 1.0)
    return sign * s.gather(2, index[:, None].expand(-1, s.shape[1], 1)).squeeze(2)


def kernel(v: Float[Tensor, "batch c"], u: Float[Tensor, "batch d"]) -> Float[Tensor, "batch c d"]:
    """exp(-(v_i - u_j)^2 / 8) of the entries of two successive stages' directions."""
    return (-(v[:, :, None] - u[:, None, :]).square() / 8).exp()


def singular_vector_loss(s: Sequence[Tensor], t: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Squared difference of the kernels between successive stages, summed, over the batch size.

    Args:
        s: maps of the student, each (B, C_i, H, W).
        t: maps of the teacher, with the same channels.

    Reference: https://arxiv.org/abs/1807.06819, section 3
    """
    v_t = [unit(main_directions(f.detach(), 1).squeeze(2), dim=1) for f in t]
    v_s = [nearest_direction(main_directions(f, min(CANDIDATES, f.shape[1])), v) for f, v in zip(s, v_t, strict=True)]
    pairs = zip(itertools.pairwise(v_s), itertools.pairwise(v_t), strict=True)
    losses = [(kernel(b, a) - kernel(d, c)).square().sum() for (a, b), (c, d) in pairs]
    return torch.stack(losses).sum() / len(s[0])


class KDSVD(Method):
    """Kernels between successive stages' first singular vectors, matched to the teacher's.

    This differs from the released code in one point. A singular vector's sign is arbitrary, and the kernel between
    successive stages depends on it. The released code uses the sign that the decomposition returns; here the entry of
    largest magnitude is positive, so that the result does not depend on device and precision.
    """

    paper = "Lee et al., ECCV 2018, https://arxiv.org/abs/1807.06819"
    reads = frozenset({"logits", "stage*"})
    expected_failures: Mapping[str, str] = {"host-sync": "the decomposition's status is read on the host"}

    def __init__(self, *, ce_weight: NonNegative = 1.0, kdsvd_weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.kdsvd_weight = kdsvd_weight

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Check that there are two or more stages with equal channels; nothing to build."""
        pairs = pair_stages(student, teacher, "kdsvd")
        ours, theirs = ([tap.shape[0] for tap in taps] for taps in zip(*pairs, strict=True))
        if len(pairs) < 2:
            raise Incompatible(f"kdsvd needs two stages or more; {student.model} has one")
        if ours != theirs:
            raise Incompatible(
                f"kdsvd needs equal channels at all stages; "
                f"teacher {teacher.model} has {theirs}, student {student.model} has {ours}"
            )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``kdsvd``."""
        loss = singular_vector_loss(student.stages, teacher.stages)
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "kdsvd": (loss, self.kdsvd_weight),
        }
