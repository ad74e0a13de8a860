"""FitNets: the student regresses an intermediate map (hint) of the teacher.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, https://arxiv.org/abs/1412.6550

It is trained together with the labels, as in the study of Tian et al. (https://arxiv.org/abs/1910.10699), not in a
separate stage.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import Batch, DataSignature, Method, NonNegative, Output, PositiveInt, Signature, Terms
from kdbench_methods.connectors import BatchNorm2d, resizing_convolution


def hint_loss(r: Float[Tensor, "batch channels h w"], t: Float[Tensor, "batch channels h w"]) -> Float[Tensor, ""]:
    """Mean squared difference.

    Args:
        r: the student's map after the regressor.
        t: the teacher's map.

    Reference: https://arxiv.org/abs/1412.6550, equation 3
    """
    return F.mse_loss(r, t.detach())


class FitNet(Method):
    """Mean squared difference of one stage's maps, after a regressor on the student's."""

    paper = "Romero et al., ICLR 2015, https://arxiv.org/abs/1412.6550"
    reads = frozenset({"logits", "stage2"})

    def __init__(
        self, *, ce_weight: NonNegative = 1.0, hint_weight: NonNegative = 100.0, stage: PositiveInt = 2
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.hint_weight = hint_weight
        self.tap = f"stage{stage}"
        self.reads = frozenset({"logits", self.tap})

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build the regressor: convolution, batch normalisation, ReLU; also if the shapes are equal."""
        for network in (student, teacher):
            network.require(self.tap, "fitnet", f"a map of {self.tap}")
        s, t = student.taps[self.tap], teacher.taps[self.tap]
        self.regressor = nn.Sequential(resizing_convolution(s, t, "fitnet"), BatchNorm2d(t.shape[0]), nn.ReLU())

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``hint``."""
        hint = hint_loss(self.regressor(student[self.tap]), teacher[self.tap])
        return {"ce": (batch.cross_entropy(student.logits), self.ce_weight), "hint": (hint, self.hint_weight)}
