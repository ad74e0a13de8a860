"""ResNet-50 (He 2016, https://arxiv.org/abs/1512.03385) with the stem for small images, as in the CRD study.

The stem is one 3x3 convolution without stride or pooling, so that an image of 32 pixels becomes a map of 4x4.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.base import (
    Recorder,
    TappedModel,
    check_image,
    he_initialise,
    rectified_stages,
    rectified_taps,
)

EXPANSION = 4


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 pixels with a shortcut; returns their sum, to which the network applies ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 4 width, H / stride, W / stride), before the activation."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        total: Tensor = self.bn3(self.conv3(residual)) + self.shortcut(x)
        return total


class BottleneckResNet(TappedModel):
    """A ResNet of bottleneck blocks, with ``blocks`` in each of four stages."""

    family = "resnet"
    head = ("fc",)
    classifier = "fc"
    published_names: ClassVar[dict[str, str]] = {"linear": "fc"}

    def __init__(self, blocks: tuple[int, int, int, int], classes: int, in_channels: int) -> None:
        super().__init__()
        self.taps = rectified_taps(stages=4)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(blocks[0], 64, 64, stride=1)
        self.layer2 = _stage(blocks[1], 256, 128, stride=2)
        self.layer3 = _stage(blocks[2], 512, 256, stride=2)
        self.layer4 = _stage(blocks[3], 1024, 512, stride=2)
        self.fc = nn.Linear(2048, classes)
        he_initialise(self)

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        x = record("stem", F.relu(self.bn1(self.conv1(images))))
        x = rectified_stages(x, (self.layer1, self.layer2, self.layer3, self.layer4), record)
        embedding = record("embedding", x.mean(dim=(2, 3)))
        record("logits", self.fc(embedding))
        return record.taps

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """See :meth:`TappedModel.batch_norm_before`."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        norms = {f"stage{i}/pre": stage[-1].bn3 for i, stage in enumerate(stages, start=1)}
        return norms.get(tap)  # type: ignore[return-value]


def _stage(blocks: int, in_channels: int, width: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, width, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1)))


def resnet50(*, classes: int, image_shape: tuple[int, int, int]) -> BottleneckResNet:
    """ResNet-50 for images (channels, height, width) of 8 pixels or more."""
    check_image("ResNet50", image_shape, smallest=8)
    return BottleneckResNet((3, 4, 6, 3), classes, in_channels=image_shape[0])
