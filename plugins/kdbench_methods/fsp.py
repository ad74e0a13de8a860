"""Flow of the solution procedure: products of successive maps, learnt before the labels.

Yim et al., "A Gift from Knowledge Distillation", CVPR 2017,
https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html

The student trains longer than with other methods, by the epochs of its first stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdbench.method import (
    Batch,
    DataSignature,
    Incompatible,
    Method,
    NonNegativeInt,
    Output,
    Positive,
    Signature,
    Stage,
    Terms,
)
from kdbench_methods.pairing import pair_stages, pool_to_smaller


def flow(f: Float[Tensor, "batch c h w"], g: Float[Tensor, "batch d k l"]) -> Float[Tensor, "batch c d"]:
    """G: mean over space of the products of two maps' channels, at the smaller map's size."""
    f, g = pool_to_smaller(f, g)
    x, y = f.flatten(2), g.flatten(2)
    return x @ y.mT / x.shape[2]


def flow_loss(s: Sequence[Tensor], t: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Mean squared difference of the flows between successive maps, summed over them.

    Args:
        s: maps of the student, each (B, C_i, H, W).
        t: maps of the teacher, with the same channels.
    """
    pairs = zip(itertools.pairwise(s), itertools.pairwise(t), strict=True)
    losses = [F.mse_loss(flow(*ours), flow(*theirs).detach()) for ours, theirs in pairs]
    return torch.stack(losses).sum()


class FSP(Method):
    """Products of successive maps, matched to the teacher's in a first stage before the labels."""

    paper = "Yim et al., CVPR 2017, https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html"
    reads = frozenset({"logits"})

    def __init__(self, *, fsp_epochs: NonNegativeInt = 30, fsp_weight: Positive = 1.0) -> None:
        super().__init__()
        self.fsp_epochs = fsp_epochs
        self.fsp_weight = fsp_weight

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Check that stages can be paired and have equal channels; nothing to build."""
        for network in (student, teacher):
            network.require("stem", "fsp", "a stem map")
        pairs = [(student.taps["stem"], teacher.taps["stem"]), *pair_stages(student, teacher, "fsp")]
        ours, theirs = ([tap.shape[0] for tap in taps] for taps in zip(*pairs, strict=True))
        if ours != theirs:
            raise Incompatible(
                f"fsp needs equal channels from stem to last stage; "
                f"teacher {teacher.model} has {theirs}, student {student.model} has {ours}"
            )

    def stages(self) -> Sequence[Stage]:
        """The flow stage, which trains the student's body."""
        reads = frozenset({"stem", "stage*"})
        return [Stage("flow", self.flow, self.fsp_epochs, ("student.body",), reads)]

    def flow(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The first stage's term, ``fsp``."""
        maps = ([network["stem"], *network.stages] for network in (student, teacher))
        return {"fsp": (flow_loss(*maps), self.fsp_weight)}

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``."""
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}
