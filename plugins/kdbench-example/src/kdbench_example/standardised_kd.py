"""Soft targets of standardised logits: the student learns the teacher's ranking of classes, not its scale.

Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, https://arxiv.org/abs/2403.01732
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.method import Batch, Method, NonNegative, Output, Positive, Terms


def standardised(z: Tensor) -> Tensor:
    """Logits (B, C), each row with mean 0 and standard deviation 1 (algorithm 1 of the paper); a constant row is 0."""
    # Layer normalisation is that very map. Its epsilon keeps the gradient of a constant row finite.
    return F.layer_norm(z, z.shape[-1:])


def standardised_kd_loss(s: Tensor, t: Tensor, T: float) -> Tensor:
    """T^2 * KL(softmax(Z(t)/T) || softmax(Z(s)/T)) in nats, averaged over the batch; Z standardises each row.

    Args:
        s: logits of the student, (B, C).
        t: logits of the teacher, (B, C).
        T: temperature, positive.

    Reference: https://arxiv.org/abs/2403.01732
    """
    log_p = F.log_softmax(standardised(s) / T, dim=1)
    log_q = F.log_softmax(standardised(t.detach()) / T, dim=1)
    return T**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


class StandardisedKD(Method):
    """Soft targets of standardised logits: the student need not match the teacher's scale."""

    paper = "Sun et al., CVPR 2024, https://arxiv.org/abs/2403.01732"
    reads = frozenset({"logits"})

    def __init__(
        self, *, temperature: Positive = 2.0, ce_weight: NonNegative = 0.1, kd_weight: NonNegative = 9.0
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``kd``."""
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "kd": (standardised_kd_loss(student.logits, teacher.logits, self.temperature), self.kd_weight),
        }
