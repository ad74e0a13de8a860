"""Relational knowledge distillation: match distances and angles among a batch's embeddings to the teacher's.

Park et al., "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068

Both terms are computed from the Gram matrix G of the centred embeddings, in O(B^2 D + B^3) work and O(B^3)
memory; forming the differences of all triples takes O(B^3 D) work and O(B^2 D) memory. G is computed in float64:
in float32, the distance of pairs closer than 0.3 % of their norms would be lost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, Signature, Terms


def gram_matrix(e: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
    """Inner products, in float64, of the embeddings minus their mean.

    A common shift of all embeddings does not change distances and angles, but it changes their rounding errors.
    """
    e = e.double()
    # Detached: the losses do not depend on the centre, so its gradient is zero up to rounding.
    e = e - e.detach().mean(0)
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


def relative_distances(e: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
    """psi_D: Euclidean distances, divided by the mean of the positive ones."""
    squared, coincident = squared_distances(gram_matrix(e), torch.finfo(e.dtype).eps)
    distance = torch.where(coincident, 0.0, squared.sqrt())
    positive = (~coincident).sum().clamp(min=1)
    mean = distance.sum() / positive
    return (distance / torch.where(mean > 0, mean, 1.0)).to(e.dtype)


def angle_cosines(e: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch batch"]:
    """psi_A: [i, j, k] is the cosine, at vertex i, of the angle between e_j - e_i and e_k - e_i."""
    G = gram_matrix(e)
    squared, coincident = squared_distances(G, torch.finfo(e.dtype).eps)
    inverse = torch.where(coincident, 0.0, squared.rsqrt()).to(e.dtype)
    # Only the differences need float64, not the later values that are kept for the gradient.
    inner = (G[None] - G[:, :, None] - G[:, None, :] + G.diagonal()[:, None, None]).to(e.dtype)
    return inner * inverse[:, :, None] * inverse[:, None, :]


def distance_loss(s: Float[Tensor, "batch width"], t: Float[Tensor, "batch wide"]) -> Float[Tensor, ""]:
    """Smooth L1 (beta 1) of the relative distances, mean over all B^2 pairs.

    Args:
        s: embeddings of the student.
        t: embeddings of the teacher; the widths may differ.

    Reference: https://arxiv.org/abs/1904.05068, section 3.2.1
    """
    return F.smooth_l1_loss(relative_distances(s), relative_distances(t).detach())


def angle_loss(s: Float[Tensor, "batch width"], t: Float[Tensor, "batch wide"]) -> Float[Tensor, ""]:
    """Smooth L1 (beta 1) of the angles' cosines, mean over all B^3 triples.

    Args:
        s: embeddings of the student.
        t: embeddings of the teacher; the widths may differ.

    Reference: https://arxiv.org/abs/1904.05068, section 3.2.2
    """
    return F.smooth_l1_loss(angle_cosines(s), angle_cosines(t).detach())


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
