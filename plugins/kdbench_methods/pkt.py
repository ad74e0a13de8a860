"""Probabilistic knowledge transfer: match the distribution of similarities in a batch to the teacher's.

Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
https://arxiv.org/abs/1803.10837
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, Signature, Terms
from kdbench_methods.numerics import safe_norm, unit

EPS = 1e-7


def similarities(e: Float[Tensor, "batch width"], eps: float = EPS) -> Float[Tensor, "batch batch"]:
    """Row i: probabilities over j, proportional to the cosine of both embeddings, scaled to [0, 1]."""
    norm = safe_norm(e, dim=1)
    # The published form divides by norm + eps; a zero row stays 0 and gets no gradient.
    e = unit(e, dim=1) * (norm / (norm + eps))
    K = (e @ e.T + 1) / 2
    return K / K.sum(1, keepdim=True)


def pkt_loss(s: Float[Tensor, "batch width"], t: Float[Tensor, "batch wide"], eps: float = EPS) -> Float[Tensor, ""]:
    """Mean over all B^2 pairs of p_t log((p_t + eps) / (p_s + eps)), with p the batch's similarities.

    It is a mean over B^2 entries, and each row sums to 1: it decreases approximately as 1/B with the batch size.

    Args:
        s: embeddings of the student.
        t: embeddings of the teacher; the widths may differ.
        eps: keeps the logarithm finite.

    Reference: https://arxiv.org/abs/1803.10837
    """
    p_s = similarities(s, eps)
    p_t = similarities(t, eps).detach()
    return (p_t * ((p_t + eps).log() - (p_s + eps).log())).mean()


class PKT(Method):
    """Divergence between the teacher's and the student's similarities within the batch."""

    paper = "Passalis and Tefas, ECCV 2018, https://arxiv.org/abs/1803.10837"
    reads = frozenset({"logits", "embedding"})

    def __init__(self, *, ce_weight: NonNegative = 1.0, pkt_weight: NonNegative = 30000.0) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.pkt_weight = pkt_weight

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Check that both have an embedding; nothing to build."""
        for network in (student, teacher):
            network.require("embedding", "pkt", "an embedding")

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``pkt``; the default weight is for batches of 64."""
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "pkt": (pkt_loss(student.embedding, teacher.embedding), self.pkt_weight),
        }
