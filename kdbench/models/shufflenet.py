"""ShuffleNets for small images, as in the CRD study: version 1 with three groups, version 2 at width 1.

Zhang 2018, https://arxiv.org/abs/1707.01083; Ma 2018, https://arxiv.org/abs/1807.11164. The stem is a 1x1
convolution without stride.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.base import Recorder, TappedModel, check_image, rectified_stages, rectified_taps

STEM = 24


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal groups: (B, C, H, W) to the same shape."""
    batch, channels, height, width = x.shape
    # In the order of memory under channels_last, which the result keeps: otherwise each block would convert it back.
    grouped = x.permute(0, 2, 3, 1).reshape(batch, height, width, groups, channels // groups)
    return grouped.transpose(3, 4).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class GroupedBottleneck(nn.Module):
    """Version 1's block: grouped 1x1, depthwise 3x3, grouped 1x1; returns its output before the activation.

    With stride 2 the pooled input is concatenated with the result, otherwise added to it.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        # The few channels of the stem are not divided into groups.
        self.groups = 1 if in_channels == STEM else groups
        self.stride = stride
        out_channels = channels - in_channels if stride == 2 else channels
        middle = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, out_channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride), before the activation."""
        y = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.stride == 2:
            return torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        total: Tensor = y + x
        return total


class ShuffleNetV1(TappedModel):
    """ShuffleNet with ``blocks`` and ``channels`` for each stage, and 1x1 convolutions in ``groups``."""

    family = "shufflenet"
    head = ("fc",)
    classifier = "fc"
    published_names: ClassVar[dict[str, str]] = {"linear": "fc"}

    def __init__(
        self,
        channels: tuple[int, int, int],
        blocks: tuple[int, int, int],
        groups: int,
        classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.taps = rectified_taps(stages=3)
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        stages = []
        before = STEM
        for width, count in zip(channels, blocks, strict=True):
            first = GroupedBottleneck(before, width, 2, groups)
            others = (GroupedBottleneck(width, width, 1, groups) for _ in range(count - 1))
            stages.append(nn.Sequential(first, *others))
            before = width
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(before, classes)

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
        return stages[tap][-1].bn3 if tap in stages else None  # type: ignore[return-value]


class SplitBlock(nn.Module):
    """Version 2's block: one half of the channels is unchanged, the other is convolved (1x1, depthwise 3x3, 1x1).

    Returns both halves concatenated, before the activation and the shuffle; the unchanged half is already
    nonnegative.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        passed, y = x.chunk(2, dim=1)
        y = F.relu(self.bn1(self.conv1(y)))
        y = self.bn2(self.conv2(y))
        return torch.cat([passed, self.bn3(self.conv3(y))], dim=1)


class DownsamplingBlock(nn.Module):
    """Version 2's first block of a stage: two concatenated convolved branches, at half the size."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / 2, W / 2), before the activation and the shuffle."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        return torch.cat([left, self.bn5(self.conv5(right))], dim=1)


class ShuffleNetV2(TappedModel):
    """ShuffleNetV2 with ``blocks`` after the downsampling block in each stage.

    ``channels`` are those of the stages and of the last convolution. ``stageI/pre`` has the channel order before
    the shuffle, ``stageI`` the order after it.
    """

    family = "shufflenet"
    head = ("conv2", "bn2", "fc")
    classifier = "fc"
    published_names: ClassVar[dict[str, str]] = {"linear": "fc"}

    def __init__(
        self,
        channels: tuple[int, int, int, int],
        blocks: tuple[int, int, int],
        classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.taps = rectified_taps(stages=3)
        *widths, last = channels
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        stages = []
        before = STEM
        for width, count in zip(widths, blocks, strict=True):
            others = (SplitBlock(width) for _ in range(count))
            stages.append(nn.Sequential(DownsamplingBlock(before, width), *others))
            before = width
        self.layer1, self.layer2, self.layer3 = stages
        self.conv2 = nn.Conv2d(before, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last, classes)

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        x = record("stem", F.relu(self.bn1(self.conv1(images))))
        stages = (self.layer1, self.layer2, self.layer3)
        # A second ReLU does not change the unchanged half of a block.
        x = rectified_stages(x, stages, record, activation=lambda y: shuffle(F.relu(y), 2))
        x = F.relu(self.bn2(self.conv2(x)))
        embedding = record("embedding", x.mean(dim=(2, 3)))
        record("logits", self.fc(embedding))
        return record.taps


def shufflenet_v1(*, classes: int, image_shape: tuple[int, int, int]) -> ShuffleNetV1:
    """ShuffleNet (3 groups) for images (channels, height, width) of 8 pixels or more."""
    check_image("ShuffleNetV1", image_shape, smallest=8)
    return ShuffleNetV1((240, 480, 960), (4, 8, 4), 3, classes, in_channels=image_shape[0])


def shufflenet_v2(*, classes: int, image_shape: tuple[int, int, int]) -> ShuffleNetV2:
    """ShuffleNetV2 (width 1) for images (channels, height, width) of 8 pixels or more."""
    check_image("ShuffleNetV2", image_shape, smallest=8)
    return ShuffleNetV2((116, 232, 464, 1024), (3, 7, 3), classes, in_channels=image_shape[0])
