"""Relational knowledge distillation: match distances and angles among a batch's embeddings to the teacher's.

Park et al., "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068

Both terms are computed from the Gram matrix of the centred embeddings, in O(B^2 D + B^3) work and O(B^2 + B D) memory;
forming the differences of all pairs takes O(B^3 D) work and O(B^2 D) memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, Signature, Terms
from kdbench_methods.angles import AngleDifference
from kdbench_methods.gram import gram_matrix, squared_distances


def relative_distances(e: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
    """psi_D: Euclidean distances, divided by the mean of the positive ones."""
    squared, coincident = squared_distances(gram_matrix(e), torch.finfo(e.dtype).eps)
    distance = torch.where(coincident, 0.0, squared.sqrt())
    positive = (~coincident).sum().clamp(min=1)
    mean = distance.sum() / positive
    return (distance / torch.where(mean > 0, mean, 1.0)).to(e.dtype)


def distance_loss(s: Float[Tensor, "batch width"], t: Float[Tensor, "batch wide"]) -> Float[Tensor, ""]:
    """Smooth L1 (beta 1) of the relative distances, mean over all B^2 pairs.

    Args:
        s: embeddings of the student.
        t: embeddings of the teacher; the widths may differ.

    Reference: https://arxiv.org/abs/1904.05068, section 3.2.1
    """
    return F.smooth_l1_loss(relative_distances(s), relative_distances(t).detach())


def angle_loss(s: Float[Tensor, "batch width"], t: Float[Tensor, "batch wide"]) -> Float[Tensor, ""]:
    """Smooth L1 (beta 1) of the angles' cosines, mean over all B^3 triples. It has no second derivative.

    Args:
        s: embeddings of the student.
        t: embeddings of the teacher; the widths may differ.

    Reference: https://arxiv.org/abs/1904.05068, section 3.2.2
    """
    loss: Tensor = AngleDifference.apply(s, t.detach())
    return loss


class RKD(Method):
    """Distances and angles among the batch's embeddings, matched to the teacher's."""

    paper = "Park et al., CVPR 2019, https://arxiv.org/abs/1904.05068"
    reads = frozenset({"logits", "embedding"})

    def __init__(
        self,
        *,
        ce_weight: NonNegative = 1.0,
        distance_weight: NonNegative = 25.0,
        angle_weight: NonNegative = 50.0,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Check that both have an embedding; nothing to build."""
        for network in (student, teacher):
            network.require("embedding", "rkd", "an embedding")

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, ``distance`` and ``angle``; a term of weight 0 is not computed."""
        s, t = student.embedding, teacher.embedding
        terms = {"ce": (batch.cross_entropy(student.logits), self.ce_weight)}
        if self.distance_weight > 0:
            terms["distance"] = (distance_loss(s, t), self.distance_weight)
        if self.angle_weight > 0:
            terms["angle"] = (angle_loss(s, t), self.angle_weight)
        return terms
