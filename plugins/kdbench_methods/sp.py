"""Similarity preserving: match the similarities of images in a batch to the teacher's.

Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, https://arxiv.org/abs/1907.09682
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, Signature, Terms
from kdbench_methods.numerics import unit


def similarity(f: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch batch"]:
    """G: inner products of the flattened maps, rows L2-normalised."""
    q = f.flatten(1)
    return unit(q @ q.T, dim=1)


def similarity_loss(s: Float[Tensor, "batch c h w"], t: Float[Tensor, "batch d k l"]) -> Float[Tensor, ""]:
    """||G_t - G_s||^2 / B^2.

    Args:
        s: map of the student.
        t: map of the teacher; channels and sizes may differ.

    Reference: https://arxiv.org/abs/1907.09682, equation 4
    """
    return (similarity(t.detach()) - similarity(s)).square().mean()


class SP(Method):
    """Similarities within the batch, computed from the last map and matched to the teacher's."""

    paper = "Tung and Mori, ICCV 2019, https://arxiv.org/abs/1907.09682"
    reads = frozenset({"logits", "stage-1"})

    def __init__(self, *, ce_weight: NonNegative = 1.0, sp_weight: NonNegative = 3000.0) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.sp_weight = sp_weight

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Check that both have a last map; nothing to build."""
        for network in (student, teacher):
            network.require("stage-1", "sp", "a last stage map")

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``sp``."""
        [s], [t] = student.stages, teacher.stages
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "sp": (similarity_loss(s, t), self.sp_weight),
        }
