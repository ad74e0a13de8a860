"""Factor transfer: the student learns an autoencoder's factors of the teacher's last map.

Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
https://arxiv.org/abs/1802.04977

An autoencoder (the paraphraser) learns to reconstruct the teacher's map; its encoder is kept and frozen. A second
network (the translator) learns to compute the same factors from the student's map.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import (
    Batch,
    DataSignature,
    Method,
    NonNegative,
    NonNegativeInt,
    Output,
    PositiveInt,
    Signature,
    Stage,
    Terms,
)
from kdbench_methods.connectors import BatchNorm2d
from kdbench_methods.numerics import unit
from kdbench_methods.pairing import pool_to_smaller

SLOPE = 0.1
"""Negative slope of the leaky ReLUs."""


def channel_factor(f: Float[Tensor, "batch channels h w"], p1: int = 2) -> Float[Tensor, "batch pixels"]:
    """Mean over channels of f^p1, flattened and L2-normalised."""
    return unit(f.pow(p1).mean(1).flatten(1), dim=1)


def full_factor(f: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch elements"]:
    """The whole map, flattened and L2-normalised."""
    return unit(f.flatten(1), dim=1)


def factor_loss(
    s: Float[Tensor, "batch elements"], t: Float[Tensor, "batch elements"], p2: int = 1
) -> Float[Tensor, ""]:
    """Mean of |s - t|^p2.

    Args:
        s: factors of the student (translator), normalised.
        t: factors of the teacher (paraphraser), normalised.
        p2: exponent.

    Reference: https://arxiv.org/abs/1802.04977, equation 3
    """
    return (s - t.detach()).abs().pow(p2).mean()


class Paraphraser(nn.Module):
    """Convolutional autoencoder of maps (B, C, H, W), with C/2 channels in between.

    ``decoder`` is None when only the encoder is needed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, half, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(half, half, 3, padding=1),
            nn.LeakyReLU(SLOPE),
        )
        self.decoder: nn.Sequential | None = nn.Sequential(
            nn.ConvTranspose2d(half, half, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(half, channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
        )

    def forward(self, f: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        """The reconstruction of ``f``."""
        if self.decoder is None:
            raise RuntimeError("the paraphraser's decoder is dropped after its stage")
        reconstruction: Tensor = self.decoder(self.encoder(f))
        return reconstruction


def translator(student_channels: int, teacher_channels: int, batch_norm: bool = True) -> nn.Sequential:
    """The network from a student's map to factors of the teacher's, C_t/2 channels."""
    half = teacher_channels // 2
    widths = [student_channels, student_channels, half, half]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        if batch_norm:
            layers.append(BatchNorm2d(after))
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


class FT(Method):
    """Factors of the last map: of the teacher by a paraphraser, of the student by a translator."""

    paper = "Kim et al., NeurIPS 2018, https://arxiv.org/abs/1802.04977"
    reads = frozenset({"logits", "stage-1"})

    def __init__(
        self,
        *,
        ce_weight: NonNegative = 1.0,
        ft_weight: NonNegative = 200.0,
        p1: PositiveInt = 2,
        p2: PositiveInt = 1,
        factor: Literal["channel-mean", "full"] = "channel-mean",
        batch_norm: bool = True,
        reconstruction: Literal["mse", "l1"] = "mse",
        paraphraser_epochs: NonNegativeInt = 30,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.ft_weight = ft_weight
        self.p1 = p1
        self.p2 = p2
        self.factor = factor
        self.batch_norm = batch_norm
        self.reconstruction = reconstruction
        self.paraphraser_epochs = paraphraser_epochs
        self.paraphraser_lr: float | None = None

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build the paraphraser, which depends only on the teacher, and the translator."""
        [s] = student.require("stage-1", "ft", "a last stage map")
        [t] = teacher.require("stage-1", "ft", "a last stage map")
        channels = teacher.taps[t].shape[0]
        self.paraphraser = Paraphraser(channels)
        self.translator = translator(student.taps[s].shape[0], channels, self.batch_norm)
        if student.family in {"resnet", "wrn"}:
            self.paraphraser_lr = 0.01

    def stages(self) -> Sequence[Stage]:
        """The stage of the paraphraser; it depends only on teacher and seed."""
        return [
            Stage(
                "paraphraser",
                self.reconstruct,
                self.paraphraser_epochs,
                trains=("paraphraser",),
                reads=frozenset({"stage-1"}),
                lr=self.paraphraser_lr,
                uses_student=False,
            )
        ]

    def reconstruct(self, student: Output | None, teacher: Output, batch: Batch) -> Terms:
        """The paraphraser stage's term, ``reconstruction``."""
        t = teacher.stages[0].detach()
        difference = F.mse_loss if self.reconstruction == "mse" else F.l1_loss
        return {"reconstruction": (difference(self.paraphraser(t), t), 1.0)}

    def after_stage(self, name: str) -> None:
        """Freeze the paraphraser's encoder and drop its decoder."""
        self.paraphraser.decoder = None
        self.paraphraser.requires_grad_(False)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``ft``."""
        [s], [t] = student.stages, teacher.stages
        with torch.no_grad():
            f_t = self.paraphraser.encoder(t)
        f_s, f_t = pool_to_smaller(self.translator(s), f_t)
        if self.factor == "full":
            ft = factor_loss(full_factor(f_s), full_factor(f_t), self.p2)
        else:
            ft = factor_loss(channel_factor(f_s, self.p1), channel_factor(f_t, self.p1), self.p2)
        return {"ce": (batch.cross_entropy(student.logits), self.ce_weight), "ft": (ft, self.ft_weight)}
