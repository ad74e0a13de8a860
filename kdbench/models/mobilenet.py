"""MobileNetV2 (Sandler 2018, https://arxiv.org/abs/1801.04381) as in the CRD study, usually at half width.

The strides are those for small images except in the stem. Bottlenecks end without an activation: the stages' maps
are signed, and ``stageI/pre`` is the same tensor as ``stageI``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from torch import Tensor, nn

from kdbench.models.base import NONNEGATIVE, SIGNED, Recorder, TappedModel, check_image, he_initialise

GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Channels at full width, blocks and stride of each group of blocks; the first does not expand."""
EXPANSION = 6
STAGE_ENDS = (1, 2, 4, 6)
"""The groups after which a stage ends: those before a group that halves the map, and the last."""
EMBEDDING = 1280


class InvertedResidual(nn.Module):
    """Expand, convolve depthwise, project without activation; with a shortcut if the shape stays the same."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        residual: Tensor = self.conv(x)
        return x + residual if self.has_shortcut else residual


class MobileNetV2(TappedModel):
    """A MobileNetV2 with ``width`` times the original number of channels."""

    family = "mobilenet"
    head = ("conv2", "fc")
    classifier = "fc"
    published_names: ClassVar[dict[str, str]] = {"classifier.0": "fc"}

    def __init__(self, width: float, classes: int, in_channels: int) -> None:
        super().__init__()
        self.taps = {"stem": NONNEGATIVE}
        for i in range(1, len(STAGE_ENDS) + 1):
            self.taps |= {f"stage{i}/pre": SIGNED, f"stage{i}": SIGNED}
        self.taps |= {"embedding": NONNEGATIVE, "logits": SIGNED}
        channels = int(32 * width)
        self.conv1 = _convolution(in_channels, channels, 3, stride=2)
        self.blocks = nn.ModuleList()
        for index, (full_width, blocks, stride) in enumerate(GROUPS):
            out_channels = int(full_width * width)
            group = nn.Sequential()
            for i in range(blocks):
                expansion = EXPANSION if index > 0 else 1
                group.append(InvertedResidual(channels, out_channels, stride if i == 0 else 1, expansion))
                channels = out_channels
            self.blocks.append(group)
        self.conv2 = _convolution(channels, EMBEDDING, 1)
        self.fc = nn.Linear(EMBEDDING, classes)
        he_initialise(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        x = record("stem", self.conv1(images))
        for index, group in enumerate(self.blocks):
            x = group(x)
            if index in STAGE_ENDS:
                stage = f"stage{STAGE_ENDS.index(index) + 1}"
                record(f"{stage}/pre", x)
                record(stage, x)
        embedding = record("embedding", self.conv2(x).mean(dim=(2, 3)))
        record("logits", self.fc(embedding))
        return record.taps

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """See :meth:`TappedModel.batch_norm_before`; here the one at the end of the stage."""
        ends = {f"stage{i}/pre": self.blocks[end] for i, end in enumerate(STAGE_ENDS, start=1)}
        return ends[tap][-1].conv[-1] if tap in ends else None  # type: ignore[index]


def _convolution(in_channels: int, channels: int, size: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def mobilenet_v2(*, classes: int, image_shape: tuple[int, int, int], width: float = 0.5) -> MobileNetV2:
    """A MobileNetV2 for images (channels, height, width) of 8 pixels or more."""
    check_image("MobileNetV2", image_shape, smallest=8)
    return MobileNetV2(width, classes, in_channels=image_shape[0])
