"""DIST: maximise the correlation of the student's probabilities with those of a stronger teacher.

Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, https://arxiv.org/abs/2205.10536
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.method import Batch, Method, NonNegative, Output, Positive, Terms
from kdbench_methods.numerics import unit


def standardised(x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """Each row minus its mean, scaled to norm 1; 0 without gradient for rows that are constant up to rounding."""
    centred = x - x.mean(1, keepdim=True)
    rounding = 64 * torch.finfo(x.dtype).eps * x.detach().norm(dim=1, keepdim=True)
    constant = centred.detach().norm(dim=1, keepdim=True) <= rounding
    return unit(torch.where(constant, 0.0, centred), dim=1)


def pearson(x: Float[Tensor, "rows n"], y: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """Correlation of each row of ``x`` with that of ``y``; 0 if one of them is constant."""
    return (standardised(x) * standardised(y)).sum(1)


def relation_losses(
    s: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"], T: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(inter, intra): T^2 * (1 - mean correlation) of the softened probabilities' rows, and of their columns.

    Args:
        s: logits of the student.
        t: logits of the teacher.
        T: temperature.

    Reference: https://arxiv.org/abs/2205.10536, equations 8 and 9
    """
    p = (s / T).softmax(dim=1)
    q = (t.detach() / T).softmax(dim=1)
    return T**2 * (1 - pearson(p, q).mean()), T**2 * (1 - pearson(p.T, q.T).mean())


class DIST(Method):
    """Correlation with the teacher's probabilities over classes, and over the batch's images."""

    paper = "Huang et al., NeurIPS 2022, https://arxiv.org/abs/2205.10536"
    reads = frozenset({"logits"})

    def __init__(
        self,
        *,
        ce_weight: NonNegative = 1.0,
        inter_weight: NonNegative = 2.0,
        intra_weight: NonNegative = 2.0,
        temperature: Positive = 4.0,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.inter_weight = inter_weight
        self.intra_weight = intra_weight
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, ``inter`` and ``intra``."""
        inter, intra = relation_losses(student.logits, teacher.logits, self.temperature)
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "inter": (inter, self.inter_weight),
            "intra": (intra, self.intra_weight),
        }
