"""Akida's distiller: labels and a selectable distillation loss on the raw predictions.

BrainChip Akida models, https://doc.brainchipinc.com
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, Fraction, Method, Output, Positive, Terms
from kdbench_methods.kd import soft_target_loss

LossName = Literal["kl", "mse", "mae"]


def prediction_loss(
    s: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"], loss: LossName, T: float
) -> Float[Tensor, ""]:
    """Distance of raw predictions: T^2 * KL at temperature T, or mean squared or absolute difference.

    Args:
        s: logits of the student.
        t: logits of the teacher.
        loss: name of the loss.
        T: temperature of the KL divergence.
    """
    if loss == "kl":
        return soft_target_loss(s, t, T)
    return F.mse_loss(s, t.detach()) if loss == "mse" else F.l1_loss(s, t.detach())


class AkidaDistiller(Method):
    """Akida's distiller: alpha times the labels, 1 - alpha times a loss on the raw predictions."""

    paper = "BrainChip Akida models, https://doc.brainchipinc.com"
    reads = frozenset({"logits"})
    label_term = "student_loss"

    def __init__(
        self,
        *,
        alpha: Fraction = 0.1,
        distillation_loss: Literal["kl", "mse", "mae"] = "kl",
        temperature: Positive = 3.0,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.distillation_loss: LossName = distillation_loss
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``student_loss`` and ``distillation_loss``, with the names in the distiller's log."""
        loss = prediction_loss(student.logits, teacher.logits, self.distillation_loss, self.temperature)
        return {
            "student_loss": (batch.cross_entropy(student.logits), self.alpha),
            "distillation_loss": (loss, 1 - self.alpha),
        }
