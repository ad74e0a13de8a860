"""ReviewKD: the student's deeper maps are fused with its shallower ones and matched to the teacher's maps.

Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, https://arxiv.org/abs/2104.09044
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import Batch, DataSignature, Method, NonNegative, NonNegativeInt, Output, Signature, Terms
from kdbench_methods.connectors import BatchNorm2d
from kdbench_methods.pairing import pair_stages, pool
from kdbench_methods.schedules import warm_up

MOST_CHANNELS = 512


def hierarchical_context_loss(s: Float[Tensor, "batch c h w"], t: Float[Tensor, "batch c h w"]) -> Float[Tensor, ""]:
    """Weighted mean of the mean squared differences at full size and average-pooled to 4, 2 and 1.

    The full size has weight 1 and each next size half of the previous weight; sizes that are not smaller than the map
    are left out.

    Args:
        s: a fused map of the student.
        t: the teacher's map.

    Reference: https://arxiv.org/abs/2104.09044, section 3.4
    """
    sizes = [size for size in (4, 2, 1) if size < s.shape[2]]
    t = t.detach()
    losses = [F.mse_loss(s, t)] + [F.mse_loss(pool(s, (n, n)), pool(t, (n, n))) for n in sizes]
    weights = [2.0**-i for i in range(len(losses))]
    weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
    return torch.stack(weighted).sum() / sum(weights)


class Fusion(nn.Module):
    """Attention-based fusion of a student's map with the result of the deeper fusion.

    Returns the map that is compared with the teacher's, and the input for the next shallower fusion.
    """

    def __init__(self, channels: int, middle: int, teacher_channels: int, deepest: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(channels, middle, 1, bias=False)
        expand = nn.Conv2d(middle, teacher_channels, 3, padding=1, bias=False)
        for convolution in (reduce, expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.reduce = nn.Sequential(reduce, BatchNorm2d(middle))
        self.expand = nn.Sequential(expand, BatchNorm2d(teacher_channels))
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)

    def forward(
        self, x: Float[Tensor, "batch c h w"], deeper: Tensor | None, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "batch d k l"], Float[Tensor, "batch m k l"]]:
        """(map to compare with the teacher's, input of the next fusion), both of ``size``, the teacher's."""
        x = self.reduce(x)
        if self.attention is not None and deeper is not None:
            deeper = resize(deeper, (x.shape[2], x.shape[3]))
            z = self.attention(torch.cat([x, deeper], dim=1)).sigmoid()
            x = x * z[:, :1] + deeper * z[:, 1:]
        x = resize(x, size)
        return self.expand(x), x


def resize(x: Float[Tensor, "batch c h w"], size: tuple[int, int]) -> Float[Tensor, "batch c k l"]:
    """``x`` at another size, by nearest-neighbour interpolation."""
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="nearest")


class ReviewKD(Method):
    """The teacher's maps and embedding, matched by the student's maps fused from deep to shallow."""

    paper = "Chen et al., CVPR 2021, https://arxiv.org/abs/2104.09044"
    reads = frozenset({"logits", "stage*/pre", "embedding"})

    def __init__(
        self,
        *,
        ce_weight: NonNegative = 1.0,
        review_weight: NonNegative = 1.0,
        warmup_epochs: NonNegativeInt = 20,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.review_weight = review_weight
        self.warmup_epochs = warmup_epochs

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build a fusion for each stage and one for the embedding, which is the deepest."""
        for network in (student, teacher):
            network.require("embedding", "reviewkd", "an embedding")
        stages = pair_stages(student, teacher, "reviewkd", "stage*/pre", "pre-activation taps")
        pairs = [*stages, (student.taps["embedding"], teacher.taps["embedding"])]
        middle = min(MOST_CHANNELS, student.taps["embedding"].shape[0])
        self.fusions = nn.ModuleList(
            Fusion(s.shape[0], middle, t.shape[0], deepest=i == len(stages)) for i, (s, t) in enumerate(pairs)
        )

    def review(self, s: Sequence[Tensor], t: Sequence[Tensor]) -> Float[Tensor, ""]:
        """The sum of the hierarchical context losses; maps from shallow to deep."""
        deeper: Tensor | None = None
        losses = []
        for fuse, x, target in zip(reversed(self.fusions), reversed(s), reversed(t), strict=True):
            fused, deeper = fuse(x, deeper, (target.shape[2], target.shape[3]))
            losses.append(hierarchical_context_loss(fused, target))
        return torch.stack(losses).sum()

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce``, and ``review``, whose weight warms up."""
        s, t = ([*net.pre_activations, net.embedding[:, :, None, None]] for net in (student, teacher))
        weight = self.review_weight * warm_up(batch.epoch, self.warmup_epochs)
        return {
            "ce": (batch.cross_entropy(student.logits), self.ce_weight),
            "review": (self.review(s, t), weight),
        }
