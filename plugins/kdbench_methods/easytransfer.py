"""The losses of EasyTransfer's knowledge distillation, on logits.

Alibaba EasyTransfer, 2020, https://github.com/alibaba/EasyTransfer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, Fraction, Method, Output, Positive, Terms


def summed_squares(s: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Half the squared difference of the logits, summed over batch and classes."""
    return (s - t.detach()).square().sum() / 2


def soft_cross_entropy(
    s: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"], T: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy of softmax(s) with softmax(t/T): the student is not softened."""
    return F.cross_entropy(s, (t.detach() / T).softmax(dim=1))


def reverse_divergence(
    s: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"], T: float
) -> Float[Tensor, ""]:
    """KL(softmax(s/T) || softmax(t/T)), averaged over the batch.

    The released code has a parenthesis in the wrong place: its loss is not 0 if the student equals the teacher, and
    it sums over the batch within the mean. This function is the intended formula.
    """
    log_p = F.log_softmax(s / T, dim=1)
    log_q = F.log_softmax(t.detach() / T, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class EasyTransfer(Method):
    """EasyTransfer's distillation: weight task_balance for the labels, 1 - task_balance for the teacher."""

    paper = "Alibaba EasyTransfer, 2020, https://github.com/alibaba/EasyTransfer"
    reads = frozenset({"logits"})

    def __init__(
        self,
        *,
        loss: Literal["xent", "kld"] = "xent",
        task_balance: Fraction = 0.3,
        temperature: Positive = 2.0,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.task_balance = task_balance
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, and ``xent`` or ``kld``."""
        loss = soft_cross_entropy if self.loss == "xent" else reverse_divergence
        value = loss(student.logits, teacher.logits, self.temperature)
        ce = batch.cross_entropy(student.logits)
        return {"ce": (ce, self.task_balance), self.loss: (value, 1 - self.task_balance)}


class SummedSquares(Method):
    """EasyTransfer's squared error of logits, summed over batch and classes, with a scaled weight.

    The sum grows with batch and classes, and training diverges at usual learning rates. The weight of 1 / (batch *
    classes) has the same effect on gradients as a smaller learning rate; the logged term is the sum.
    """

    paper = "Alibaba EasyTransfer, 2020, https://github.com/alibaba/EasyTransfer"
    reads = frozenset({"logits"})
    expected_failures: Mapping[str, str] = {"batch-growth": "the term is a sum over batch and classes"}

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """Only ``mse``; the labels are not used."""
        return {"mse": (summed_squares(student.logits, teacher.logits), 1 / student.logits.numel())}
