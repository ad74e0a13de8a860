"""Knowledge distillation: the student imitates the teacher's softened class probabilities.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, Method, NonNegative, Output, Positive, Terms


def soft_target_loss(
    s: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"], T: float
) -> Float[Tensor, ""]:
    """T^2 * KL(softmax(t/T) || softmax(s/T)) in nats, summed over classes, averaged over the batch.

    With the factor, the size of the gradient does not depend on the temperature (section 2 of the paper).

    Args:
        s: logits of the student.
        t: logits of the teacher.
        T: temperature, positive.

    Reference: https://arxiv.org/abs/1503.02531
    """
    log_p = F.log_softmax(s / T, dim=1)
    log_q = F.log_softmax(t.detach() / T, dim=1)
    return T**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


class KD(Method):
    """Kullback-Leibler divergence from the teacher's softened class probabilities to the student's."""

    paper = "Hinton et al., 2015, https://arxiv.org/abs/1503.02531"
    reads = frozenset({"logits"})

    def __init__(
        self, *, temperature: Positive = 4.0, ce_weight: NonNegative = 0.1, kd_weight: NonNegative = 0.9
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``kd``."""
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "kd": (soft_target_loss(student.logits, teacher.logits, self.temperature), self.kd_weight),
        }
