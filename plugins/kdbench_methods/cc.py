"""Correlation congruence: products of the embedding errors of successive images.

Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, https://arxiv.org/abs/1904.01802

This is the form of Tian et al. (https://arxiv.org/abs/1910.10699); it depends on the order of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, PositiveInt, Signature, Terms


def correlation_loss(s: Float[Tensor, "batch width"], t: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
    """Mean over successive images i of sum_d |d_i| |d_(i+1)|, with d = s - t; 0 for a single image.

    Args:
        s: embeddings of the student, after their linear layer.
        t: embeddings of the teacher, after their linear layer, which is also trained.
    """
    d = (s - t).abs()
    return (d[:-1] * d[1:]).sum() / max(len(d) - 1, 1)


class CC(Method):
    """Products of successive images' embedding errors, both embeddings through a trained linear layer."""

    paper = "Peng et al., ICCV 2019, https://arxiv.org/abs/1904.01802"
    reads = frozenset({"logits", "embedding"})
    expected_failures: Mapping[str, str] = {"batch-order": "each image is compared with the next of the batch"}

    def __init__(
        self, *, ce_weight: NonNegative = 1.0, cc_weight: NonNegative = 0.02, width: PositiveInt = 128
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.cc_weight = cc_weight
        self.width = width

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build a linear layer for each network's embedding."""
        for network in (student, teacher):
            network.require("embedding", "cc", "an embedding")
        self.embed_student = nn.Linear(student.taps["embedding"].shape[0], self.width)
        self.embed_teacher = nn.Linear(teacher.taps["embedding"].shape[0], self.width)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``cc``."""
        s = self.embed_student(student.embedding)
        t = self.embed_teacher(teacher.embedding.detach())
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "cc": (correlation_loss(s, t), self.cc_weight),
        }
