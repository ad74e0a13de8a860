"""DeiT's distillation: a second head of the student learns from the teacher, the first from the labels.

Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
https://arxiv.org/abs/2012.12877
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import Batch, DataSignature, Fraction, Method, Output, Positive, Signature, Terms


def soft_distillation(
    d: Float[Tensor, "batch classes"],
    t: Float[Tensor, "batch classes"],
    tau: float = 1.0,
    reduction: Literal["numel", "batchmean"] = "numel",
) -> Float[Tensor, ""]:
    """tau^2 * KL(softmax(t/tau) || softmax(d/tau)), summed and divided by B*C or by B.

    Args:
        d: logits of the student's distillation head.
        t: logits of the teacher.
        tau: temperature.
        reduction: ``numel`` divides by B*C, as the released code does; ``batchmean`` by B.

    Reference: https://arxiv.org/abs/2012.12877, equation 2
    """
    log_p = F.log_softmax(d / tau, dim=1)
    log_q = F.log_softmax(t.detach() / tau, dim=1)
    divergence = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    return tau**2 * divergence / (d.numel() if reduction == "numel" else len(d))


def hard_distillation(d: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of ``d`` with the teacher's decision, argmax t.

    Args:
        d: logits of the student's distillation head.
        t: logits of the teacher.

    Reference: https://arxiv.org/abs/2012.12877, equation 3
    """
    return F.cross_entropy(d, t.argmax(dim=1))


def probability_distillation(
    d: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"], smoothing: float = 0.1
) -> Float[Tensor, ""]:
    """Mean cross-entropy of ``d`` with softmax(t), mixed with the uniform distribution by ``smoothing``.

    Args:
        d: logits of the student's distillation head.
        t: logits of the teacher.
        smoothing: the uniform distribution's share.
    """
    return F.cross_entropy(d, t.detach().softmax(dim=1), label_smoothing=smoothing)


class DeiT(Method):
    """A class head that learns the labels and a distillation head that learns the teacher's decision.

    If the student has a distillation head (tap ``dist_logits``), it is used; otherwise a linear head on its embedding
    is added, as part of the student. The student predicts the mean of both heads.
    """

    paper = "Touvron et al., ICML 2021, https://arxiv.org/abs/2012.12877"
    reads = frozenset({"logits"})
    student_reads = frozenset({"logits", "embedding", "dist_logits"})

    def __init__(
        self,
        *,
        distillation: Literal["hard", "soft", "probabilities", "none"] = "hard",
        alpha: Fraction = 0.5,
        tau: Positive = 1.0,
        reduction: Literal["numel", "batchmean"] = "numel",
        teacher_smoothing: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.distillation = distillation
        self.alpha = alpha
        self.tau = tau
        self.reduction: Literal["numel", "batchmean"] = reduction
        self.teacher_smoothing = teacher_smoothing
        self.dist_head: nn.Linear | None = None
        if distillation == "none":
            self.needs_teacher = False
            self.student_reads = frozenset({"logits"})

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build the distillation head if the student has none."""
        if self.distillation == "none":
            return
        if "dist_logits" in student.taps:
            self.student_reads = frozenset({"logits", "dist_logits"})
            return
        student.require("embedding", "deit", "a distillation head or an embedding")
        self.student_reads = frozenset({"logits", "embedding"})
        self.dist_head = nn.Linear(student.taps["embedding"].shape[0], student.classes)
        self.part_of_student = ("dist_head",)

    def dist_logits(self, student: Output) -> Float[Tensor, "batch classes"]:
        """The distillation head's logits."""
        if self.dist_head is None:
            return student.dist_logits
        logits: Tensor = self.dist_head(student.embedding)
        return logits

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Terms:
        """``ce`` of the class head, weight 1 - alpha, and ``distillation``, weight alpha."""
        ce = batch.cross_entropy(student.logits)
        if teacher is None or self.distillation == "none":
            return {"ce": (ce, 1.0)}
        d, t = self.dist_logits(student), teacher.logits
        if self.distillation == "hard":
            loss = hard_distillation(d, t)
        elif self.distillation == "soft":
            loss = soft_distillation(d, t, self.tau, self.reduction)
        else:
            loss = probability_distillation(d, t, self.teacher_smoothing)
        return {"ce": (ce, 1 - self.alpha), "distillation": (loss, self.alpha)}

    def predict(self, student: Output) -> Tensor:
        """The mean of both heads' logits; without distillation, only the class head's."""
        if self.distillation == "none":
            return student.logits
        return (student.logits + self.dist_logits(student)) / 2
