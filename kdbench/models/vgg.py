"""VGG with batch normalisation for small images (Simonyan 2015, https://arxiv.org/abs/1409.1556).

As in the CRD study: five groups of 3x3 convolutions, global average pooling and one linear layer. The first
group is the stem, the others are the stages. The map is halved before each stage except the last; for images of
64 pixels or more, also before the last.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import ModelError
from kdbench.models.base import Recorder, TappedModel, check_image, he_initialise, rectified_taps

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions in each group, by the number of layers."""


class VGG(TappedModel):
    """A VGG with ``convolutions`` in each of its five groups."""

    family = "vgg"
    head = ("fc",)
    classifier = "fc"
    published_names: ClassVar[dict[str, str]] = {"classifier": "fc"}

    def __init__(self, convolutions: tuple[int, ...], classes: int, in_channels: int, pools_last: bool) -> None:
        super().__init__()
        self.taps = rectified_taps(stages=4)
        self._pools = (True, True, True, pools_last)
        self.block0 = _group(convolutions[0], in_channels, CHANNELS[0])
        self.block1 = _group(convolutions[1], CHANNELS[0], CHANNELS[1])
        self.block2 = _group(convolutions[2], CHANNELS[1], CHANNELS[2])
        self.block3 = _group(convolutions[3], CHANNELS[2], CHANNELS[3])
        self.block4 = _group(convolutions[4], CHANNELS[3], CHANNELS[4])
        self.fc = nn.Linear(CHANNELS[4], classes)
        he_initialise(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        x = record("stem", F.relu(self.block0(images)))
        stages = (self.block1, self.block2, self.block3, self.block4)
        for i, (stage, pools) in enumerate(zip(stages, self._pools, strict=True), start=1):
            before = record(f"stage{i}/pre", stage(F.max_pool2d(x, 2) if pools else x))
            x = record(f"stage{i}", F.relu(before))
        embedding = record("embedding", x.mean(dim=(2, 3)))
        record("logits", self.fc(embedding))
        return record.taps

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """See :meth:`TappedModel.batch_norm_before`."""
        stages = (self.block1, self.block2, self.block3, self.block4)
        norms = {f"stage{i}/pre": stage[-1] for i, stage in enumerate(stages, start=1)}
        return norms.get(tap)  # type: ignore[return-value]


def _group(convolutions: int, in_channels: int, channels: int) -> nn.Sequential:
    """Convolutions with normalisation, with ReLU between them but not at the end."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers[:-1])


def vgg(*, classes: int, image_shape: tuple[int, int, int], depth: int) -> VGG:
    """A VGG of ``depth`` layers for images (channels, height, width) of 8 pixels or more."""
    check_image(f"vgg{depth}", image_shape, smallest=8)
    if depth not in CONVOLUTIONS:
        known = ", ".join(map(str, CONVOLUTIONS))
        raise ModelError(f"vgg: depth must be one of {known}, got {depth}")
    return VGG(CONVOLUTIONS[depth], classes, image_shape[0], pools_last=min(image_shape[1:]) >= 64)
