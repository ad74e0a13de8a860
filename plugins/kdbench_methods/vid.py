"""Variational information distillation: maximise a bound on the information shared by paired maps.

A small network predicts each of the teacher's maps from the student's. The teacher's values are modelled as Gaussian
with this mean and one learned variance per teacher channel. The loss is their negative log likelihood.

Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
https://arxiv.org/abs/1904.05835
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, Positive, Signature, Terms
from kdbench_methods.pairing import pair_stages, pool_to_smaller

VARIANCE_FLOOR = 1e-5


def negative_log_likelihood(
    mu: Float[Tensor, "batch channels h w"],
    t: Float[Tensor, "batch channels h w"],
    log_scale: Float[Tensor, " channels"],
    eps: float = VARIANCE_FLOOR,
) -> Float[Tensor, ""]:
    """Mean over all elements of ((mu - t)^2 / var + log var) / 2, with var = softplus(log_scale) + eps.

    Args:
        mu: prediction of the teacher's map from the student's.
        t: the teacher's map.
        log_scale: alpha of the paper's equation 6, one per channel.
        eps: minimum variance.

    Reference: https://arxiv.org/abs/1904.05835
    """
    var = (F.softplus(log_scale) + eps)[:, None, None]
    return ((mu - t.detach()).square() / var + var.log()).mean() / 2


class TeacherMap(nn.Module):
    """Gaussian prediction of a teacher's map (B, C_t, H, W) from a student's (B, C_s, H, W)."""

    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        # The inverse of softplus, so that the variance starts at the value of the setting.
        start = math.log(math.expm1(initial_variance - VARIANCE_FLOOR))
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), start))

    def forward(self, s: Float[Tensor, "batch c h w"], t: Float[Tensor, "batch d k l"]) -> Float[Tensor, ""]:
        """The negative log likelihood of ``t``, at the smaller map's size."""
        s, t = pool_to_smaller(s, t)
        return negative_log_likelihood(self.regressor(s), t, self.log_scale)


class VID(Method):
    """Negative log likelihood of the teacher's stage maps under Gaussians predicted from the student's."""

    paper = "Ahn et al., CVPR 2019, https://arxiv.org/abs/1904.05835"
    reads = frozenset({"logits", "stage*"})

    def __init__(
        self,
        *,
        ce_weight: NonNegative = 1.0,
        vid_weight: NonNegative = 1.0,
        initial_variance: Positive = 5.0,
    ) -> None:
        super().__init__()
        if initial_variance <= VARIANCE_FLOOR:
            raise ValueError(f"initial_variance must exceed {VARIANCE_FLOOR}, got {initial_variance}")
        self.ce_weight = ce_weight
        self.vid_weight = vid_weight
        self.initial_variance = initial_variance

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build one predictor per stage."""
        self.predictors = nn.ModuleList(
            TeacherMap(s.shape[0], t.shape[0], self.initial_variance) for s, t in pair_stages(student, teacher, "vid")
        )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, and ``vid``: the sum over the stages."""
        triples = zip(self.predictors, student.stages, teacher.stages, strict=True)
        vid = torch.stack([predictor(s, t) for predictor, s, t in triples]).sum()
        return {"ce": (batch.cross_entropy(student.logits), self.ce_weight), "vid": (vid, self.vid_weight)}
