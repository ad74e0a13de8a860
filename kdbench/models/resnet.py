"""The CIFAR ResNets of He, Zhang, Ren and Sun (CVPR 2016, https://arxiv.org/abs/1512.03385, section 4.2).

Three stages of two-convolution blocks; each stage halves the map size. If a block changes the
shape, its shortcut is a 1x1 convolution with batch normalisation, as in the CRD study
(https://arxiv.org/abs/1910.10699); the wide ones (8x4, 32x4) are from that study.
"""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import ModelError
from kdbench.models.base import Recorder, TappedModel, check_image, he_initialise, rectified_stages, rectified_taps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; returns their sum, to which the network applies ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride), before the activation."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        total: Tensor = residual + self.downsample(x)
        return total


class ResNet(TappedModel):
    """A ResNet for small images; ``channels`` are those of the stem and of each stage."""

    family = "resnet"
    head = ("fc",)
    classifier = "fc"

    def __init__(self, depth: int, channels: tuple[int, int, int, int], classes: int, in_channels: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ModelError(f"resnet: depth must be 6n + 2 with n >= 1, got {depth}")
        self.taps = rectified_taps(stages=3)
        stem, *stages = channels
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(blocks, stem, stages[0], stride=1)
        self.layer2 = _stage(blocks, stages[0], stages[1], stride=2)
        self.layer3 = _stage(blocks, stages[1], stages[2], stride=2)
        self.fc = nn.Linear(stages[2], classes)
        he_initialise(self)

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        x = record("stem", F.relu(self.bn1(self.conv1(images))))
        x = rectified_stages(x, (self.layer1, self.layer2, self.layer3), record)
        embedding = record("embedding", x.mean(dim=(2, 3)))
        record("logits", self.fc(embedding))
        return record.taps

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """See :meth:`TappedModel.batch_norm_before`."""
        stages = {"stage1/pre": self.layer1, "stage2/pre": self.layer2, "stage3/pre": self.layer3}
        return stages[tap][-1].bn2 if tap in stages else None  # type: ignore[return-value]


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def resnet(
    *,
    classes: int,
    image_shape: tuple[int, int, int],
    depth: int,
    channels: tuple[int, int, int, int] = (16, 16, 32, 64),
) -> ResNet:
    """A CIFAR ResNet of ``depth`` layers for images (channels, height, width) of 8 pixels or more."""
    check_image(f"resnet{depth}", image_shape, smallest=8)
    return ResNet(depth, channels, classes, in_channels=image_shape[0])
