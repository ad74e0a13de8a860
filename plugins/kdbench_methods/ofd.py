"""Overhaul of feature distillation: pre-activations matched above the margins of the teacher's ReLU.

Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, https://arxiv.org/abs/1904.01866
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import Batch, DataSignature, Incompatible, Method, NonNegative, Output, Signature, Terms
from kdbench_methods.connectors import BatchNorm2d
from kdbench_methods.pairing import pair_stages, pool_to_smaller

RARE = 1e-3
"""Below this probability of a negative value, its mean is not computed."""


def margins(s: Float[Tensor, " channels"], m: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """E[x | x < 0] of the normal distribution N(m, s^2); -3 |s| if x < 0 is rare.

    Args:
        s: scale of the batch normalisation before the teacher's ReLU.
        m: its shift.

    Reference: https://arxiv.org/abs/1904.01866, equation 7
    """
    s = s.abs()
    z = -m / torch.where(s > 0, s, 1.0)
    probability = torch.special.ndtr(z)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    mean = m - s * density / probability.clamp(min=RARE)
    # With s = 0, x is always m.
    mean = torch.where(s > 0, mean, m.clamp(max=0))
    return torch.where((probability > RARE) | (s == 0), mean, -3 * s)


def partial_squares(
    s: Float[Tensor, "batch channels h w"],
    t: Float[Tensor, "batch channels h w"],
    margin: Float[Tensor, " channels"],
) -> Float[Tensor, ""]:
    """Squared difference to max(t, margin), counted where s exceeds it or it is positive; summed, divided by B.

    Args:
        s: pre-activations of the student, after its connector.
        t: pre-activations of the teacher.
        margin: margin of the margin ReLU, negative, per channel.

    Reference: https://arxiv.org/abs/1904.01866, equation 3
    """
    target = torch.maximum(t.detach(), margin[:, None, None])
    counted = (s > target) | (target > 0)
    return ((s - target).square() * counted).sum() / len(s)


class MarginConnector(nn.Module):
    """1x1 convolution and batch normalisation of the student's map, with the teacher's margins."""

    margin: Tensor

    def __init__(self, student_channels: int, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(student_channels, len(scale), 1, bias=False)
        self.norm = BatchNorm2d(len(scale))
        self.register_buffer("margin", margins(scale, shift))

    def forward(self, s: Float[Tensor, "batch c h w"], t: Float[Tensor, "batch d k l"]) -> Float[Tensor, ""]:
        """The partial squares, at the smaller map's size."""
        s, t = pool_to_smaller(self.norm(self.convolution(s)), t)
        return partial_squares(s, t, self.margin)


class OFD(Method):
    """Pre-activations of all stages, matched above the margins of the teacher's normalisation."""

    paper = "Heo et al., ICCV 2019, https://arxiv.org/abs/1904.01866"
    reads = frozenset({"logits", "stage*/pre"})

    def __init__(self, *, ce_weight: NonNegative = 1.0, ofd_weight: NonNegative = 0.001) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.ofd_weight = ofd_weight

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build a connector with margins for each stage."""
        pairs = pair_stages(student, teacher, "ofd", "stage*/pre", "pre-activation taps")
        connectors = []
        for s, t in pairs:
            if t.batch_norm is None:
                raise Incompatible(
                    f"ofd needs the teacher's batch normalisation before each activation; {teacher.model} "
                    "does not provide it"
                )
            connectors.append(MarginConnector(s.shape[0], *t.batch_norm))
        self.connectors = nn.ModuleList(connectors)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, and ``ofd``: the sum over n stages, with stage i = 0 .. n-1 divided by 2^(n-i-1)."""
        triples = zip(self.connectors, student.pre_activations, teacher.pre_activations, strict=True)
        n = len(self.connectors)
        losses = [connect(s, t) / 2 ** (n - i - 1) for i, (connect, s, t) in enumerate(triples)]
        ofd = torch.stack(losses).sum()
        return {"ce": (batch.cross_entropy(student.logits), self.ce_weight), "ofd": (ofd, self.ofd_weight)}
