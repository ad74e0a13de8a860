"""Probes: linear classifiers on every layer of both networks; the student's are matched to the teacher's.

Alibaba EasyTransfer, 2020, https://github.com/alibaba/EasyTransfer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import (
    Batch,
    DataSignature,
    Method,
    NonNegative,
    NonNegativeInt,
    Output,
    Positive,
    Signature,
    Stage,
    Terms,
)
from kdbench_methods.easytransfer import reverse_divergence, soft_cross_entropy, summed_squares
from kdbench_methods.kd import soft_target_loss

LossName = Literal["mse", "xent", "kld"]


def matched_layers(n_s: int, n_t: int) -> list[int]:
    """The teacher layer that each of n_s student layers is matched to: ceil(i * n_t / n_s).

    At most n_t, the teacher's last layer (its logits); this value occurs only if the student has more layers.

    Args:
        n_s: layers of the student, without the last (its logits).
        n_t: layers of the teacher, likewise.
    """
    return [-(-i * n_t // n_s) for i in range(n_s)]


def probe_loss(
    s: Float[Tensor, "batch classes"], t: Float[Tensor, "batch classes"], loss: LossName, T: float
) -> Float[Tensor, ""]:
    """Distance of a student probe's logits to a teacher probe's, averaged over the batch.

    Args:
        s: logits of the student's probe.
        t: logits of the teacher's probe.
        loss: half the squared difference, cross-entropy to softmax(t/T), or KL(student || teacher) at T.
        T: temperature.
    """
    if loss == "mse":
        return summed_squares(s, t) / len(s)
    return soft_cross_entropy(s, t, T) if loss == "xent" else reverse_divergence(s, t, T)


class Probe(nn.Module):
    """Class logits (B, C) from a map (B, channels, H, W): global average pooling and a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, f: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch classes"]:
        """The logits."""
        logits: Tensor = self.linear(f.mean((2, 3)))
        return logits


class Probes(Method):
    """Linear classifiers on every stage; the student's are matched to the teacher's at the same relative depth."""

    paper = "Alibaba EasyTransfer, 2020, https://github.com/alibaba/EasyTransfer"
    reads = frozenset({"logits", "stage*"})

    def __init__(
        self,
        *,
        ce_weight: NonNegative = 0.1,
        kd_weight: NonNegative = 0.9,
        kd_temperature: Positive = 4.0,
        probe_weight: NonNegative = 1.0,
        probe_loss: Literal["mse", "xent", "kld"] = "mse",
        probe_temperature: Positive = 2.0,
        probe_epochs: NonNegativeInt = 5,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.kd_temperature = kd_temperature
        self.probe_weight = probe_weight
        self.probe_loss: LossName = probe_loss
        self.probe_temperature = probe_temperature
        self.probe_epochs = probe_epochs

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build a probe on every stage of both networks; the numbers of stages may differ."""
        self.teacher_probes = self._probes(teacher, data.classes)
        self.student_probes = self._probes(student, data.classes)
        self.matches = matched_layers(len(self.student_probes), len(self.teacher_probes))

    def _probes(self, signature: Signature, classes: int) -> nn.ModuleList:
        names = signature.require("stage*", "probes", "stage maps")
        return nn.ModuleList(Probe(signature.taps[name].shape[0], classes) for name in names)

    def stages(self) -> Sequence[Stage]:
        """The stage of the teacher's probes; the teacher is frozen."""
        return [
            Stage(
                "probes",
                self.classify,
                self.probe_epochs,
                trains=("teacher_probes",),
                reads=frozenset({"stage*"}),
                uses_student=False,
            )
        ]

    def classify(self, student: Output | None, teacher: Output, batch: Batch) -> Terms:
        """The first stage's term, ``ce``: the cross-entropies of all probes, summed."""
        probed = [probe(t.detach()) for probe, t in zip(self.teacher_probes, teacher.stages, strict=True)]
        return {"ce": (torch.stack([batch.cross_entropy(logits) for logits in probed]).sum(), 1.0)}

    def after_stage(self, name: str) -> None:
        """Freeze the teacher's probes."""
        self.teacher_probes.requires_grad_(False)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``; ``kd`` of the last layers; and ``probes``: the sum over the student's stages."""
        with torch.no_grad():
            theirs = [probe(t) for probe, t in zip(self.teacher_probes, teacher.stages, strict=True)]
        theirs.append(teacher.logits)
        ours = [probe(s) for probe, s in zip(self.student_probes, student.stages, strict=True)]
        losses = [
            probe_loss(logits, theirs[j], self.probe_loss, self.probe_temperature)
            for logits, j in zip(ours, self.matches, strict=True)
        ]
        kd = soft_target_loss(student.logits, teacher.logits, self.kd_temperature)
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "kd": (kd, self.kd_weight),
            "probes": (torch.stack(losses).sum(), self.probe_weight),
        }
