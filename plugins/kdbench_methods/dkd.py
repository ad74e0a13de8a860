"""Decoupled knowledge distillation: separate terms for the true class and for the other classes.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, https://arxiv.org/abs/2203.08679
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kdbench.method import Batch, Method, NonNegative, NonNegativeInt, Output, Positive, Terms
from kdbench_methods.schedules import warm_up


def true_or_other(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch 2"], Float[Tensor, "batch classes"]]:
    """log b: of the true class and of all others together; and log p-hat: of each class among the others.

    log p-hat of the true class is -infinity. It is returned as 0, and its probability of 0 excludes it.
    """
    log_p = F.log_softmax(logits, dim=1)
    # Not by one_hot, which waits for the device to check the range of the classes.
    true = y[:, None] == torch.arange(logits.shape[1], device=y.device)
    log_true = log_p.gather(1, y[:, None])
    log_others = log_p.masked_fill(true, -torch.inf).logsumexp(1, keepdim=True)
    log_hat = F.log_softmax(logits.masked_fill(true, -torch.inf), dim=1).masked_fill(true, 0.0)
    return torch.cat([log_true, log_others], dim=1), log_hat


def decoupled_losses(
    s: Float[Tensor, "batch classes"],
    t: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"],
    T: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(TCKD, NCKD), each T^2 * KL(teacher || student) in nats, averaged over the batch.

    TCKD compares the probabilities of the true class and of all others; NCKD those among the others.

    Args:
        s: logits of the student.
        t: logits of the teacher.
        y: true classes.
        T: temperature.

    Reference: https://arxiv.org/abs/2203.08679, equation 7
    """
    b_s, hat_s = true_or_other(s / T, y)
    b_t, hat_t = true_or_other(t.detach() / T, y)
    tckd = F.kl_div(b_s, b_t, reduction="batchmean", log_target=True)
    # Both are 0 at the true class, so it does not contribute.
    nckd = F.kl_div(hat_s, hat_t, reduction="batchmean", log_target=True)
    return T**2 * tckd, T**2 * nckd


class DKD(Method):
    """Soft targets in two parts: the teacher's probability of the true class, and those among the other classes."""

    paper = "Zhao et al., CVPR 2022, https://arxiv.org/abs/2203.08679"
    reads = frozenset({"logits"})

    def __init__(
        self,
        *,
        ce_weight: NonNegative = 1.0,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 8.0,
        temperature: Positive = 4.0,
        warmup_epochs: NonNegativeInt = 20,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.warmup_epochs = warmup_epochs

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``; ``tckd`` and ``nckd``, whose weights warm up."""
        tckd, nckd = decoupled_losses(student.logits, teacher.logits, batch.labels, self.temperature)
        ramp = warm_up(batch.epoch, self.warmup_epochs)
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "tckd": (tckd, self.alpha * ramp),
            "nckd": (nckd, self.beta * ramp),
        }
