"""Activation boundaries: in a first stage, the student learns which of the teacher's neurons are active.

Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
https://arxiv.org/abs/1811.03233

The student trains longer than with other methods, by the epochs of the boundary stage.
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
    NonNegativeInt,
    Output,
    Positive,
    Signature,
    Stage,
    Terms,
)
from kdbench_methods.connectors import connector
from kdbench_methods.kd import soft_target_loss
from kdbench_methods.pairing import pair_stages


def boundary_loss(
    s: Float[Tensor, "batch channels h w"], t: Float[Tensor, "batch channels h w"], m: float = 1.0
) -> Float[Tensor, ""]:
    """Squared distance of ``s`` to the margin on the teacher's side of zero, summed, divided by the batch size.

    If the teacher's neuron is inactive (t <= 0), the target for the student is s <= -m, otherwise s > m.

    Args:
        s: the student's map before its activation, connected to the teacher's shape.
        t: the teacher's map before its activation.
        m: margin.

    Reference: https://arxiv.org/abs/1811.03233, equation 4
    """
    resting = (s + m).square() * ((s > -m) & (t <= 0))
    firing = (s - m).square() * ((s <= m) & (t > 0))
    return (resting + firing).sum() / len(s)


def staged_boundary_loss(s: Sequence[Tensor], t: Sequence[Tensor], m: float = 1.0) -> Float[Tensor, ""]:
    """The sum over n stages of 2^(i-n+1) times the boundary loss of stage i = 0 .. n-1."""
    n = len(s)
    losses = [boundary_loss(a, b, m) * 2.0 ** (i - n + 1) for i, (a, b) in enumerate(zip(s, t, strict=True))]
    return torch.stack(losses).sum()


class AB(Method):
    """Activation boundaries of all stages, learnt in a first stage before the labels."""

    paper = "Heo et al., AAAI 2019, https://arxiv.org/abs/1811.03233"
    reads = frozenset({"logits"})

    def __init__(
        self,
        *,
        boundary_epochs: NonNegativeInt = 30,
        margin: Positive = 1.0,
        boundary_weight: Positive = 0.003,
        main: Literal["labels", "soft-targets"] = "labels",
        temperature: Positive = 3.0,
    ) -> None:
        super().__init__()
        self.boundary_epochs = boundary_epochs
        self.margin = margin
        self.boundary_weight = boundary_weight
        self.main = main
        self.temperature = temperature

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build one connector per stage."""
        pairs = pair_stages(student, teacher, "ab", "stage*/pre", "pre-activation taps")
        self.connectors = nn.ModuleList(connector(s, t, "ab") for s, t in pairs)

    def stages(self) -> Sequence[Stage]:
        """The boundary stage, which trains the student's body and the connectors."""
        trains = ("student.body", "connectors")
        reads = frozenset({"stage*/pre"})
        return [Stage("boundary", self.boundary, self.boundary_epochs, trains, reads)]

    def boundary(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The boundary stage's term, ``boundary``."""
        pairs = zip(self.connectors, student.pre_activations, strict=True)
        connected = [connect(s) for connect, s in pairs]
        loss = staged_boundary_loss(connected, teacher.pre_activations, self.margin)
        return {"boundary": (loss, self.boundary_weight)}

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``; or, as in the paper, only ``kd``, without the factor T^2."""
        if self.main == "labels":
            return {"ce": (batch.cross_entropy(student.logits), 1.0)}
        kd = soft_target_loss(student.logits, teacher.logits, self.temperature)
        return {"kd": (kd, self.temperature**-2)}
