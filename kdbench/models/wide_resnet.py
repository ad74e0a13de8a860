"""Wide ResNets (Zagoruyko and Komodakis, BMVC 2016, https://arxiv.org/abs/1605.07146).

Blocks apply normalisation and ReLU before each convolution, so a stage ends in a residual sum: its map is signed.
Its pre-activation tap is that sum after the *next* block's first batch normalisation (for the last stage, after the
last one of the network).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import ModelError
from kdbench.models.base import NONNEGATIVE, SIGNED, Recorder, TappedModel, check_image, he_initialise

STAGES = 3


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, each after a normalisation and an activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if in_channels != channels else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The residual sum, and the block's normalised input (a tap of the previous stage)."""
        normalised = self.bn1(x)
        activated = F.relu(normalised)
        residual = F.relu(self.bn2(self.conv1(activated)))
        residual = self.conv2(self.dropout(residual))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return residual + shortcut, normalised


class StageBlocks(nn.Module):
    """Blocks of equal width; the first may change size and width."""

    def __init__(self, blocks: int, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, channels, stride, dropout)
        others = (PreActivationBlock(channels, channels, 1, dropout) for _ in range(blocks - 1))
        self.layer = nn.ModuleList([first, *others])


class WideResNet(TappedModel):
    """A Wide ResNet of ``depth`` layers; its stages have ``width`` times 16, 32 and 64 channels."""

    family = "wrn"
    head = ("bn1", "fc")
    classifier = "fc"
    published_names: ClassVar[dict[str, str]] = {"convShortcut": "shortcut"}

    def __init__(self, depth: int, width: int, classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ModelError(f"wide_resnet: depth must be 6n + 4 with n >= 1, got {depth}")
        self.taps = {"stem": SIGNED}
        for i in range(1, STAGES + 1):
            self.taps |= {f"stage{i}": SIGNED, f"stage{i}/pre": SIGNED}
        self.taps |= {"embedding": NONNEGATIVE, "logits": SIGNED}
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = StageBlocks(blocks, 16, 16 * width, 1, dropout)
        self.block2 = StageBlocks(blocks, 16 * width, 32 * width, 2, dropout)
        self.block3 = StageBlocks(blocks, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        he_initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        x = record("stem", self.conv1(images))
        for i, stage in enumerate((self.block1, self.block2, self.block3), start=1):
            for index, block in enumerate(stage.layer):
                x, normalised = block(x)
                if index == 0 and i > 1:
                    record(f"stage{i - 1}/pre", normalised)
            record(f"stage{i}", x)
        normalised = record(f"stage{STAGES}/pre", self.bn1(x))
        embedding = record("embedding", F.relu(normalised).mean(dim=(2, 3)))
        record("logits", self.fc(embedding))
        return record.taps

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """See :meth:`TappedModel.batch_norm_before`."""
        norms = {
            "stage1/pre": self.block2.layer[0].bn1,
            "stage2/pre": self.block3.layer[0].bn1,
            "stage3/pre": self.bn1,
        }
        return norms.get(tap)  # type: ignore[return-value]


def wide_resnet(
    *,
    classes: int,
    image_shape: tuple[int, int, int],
    depth: int,
    width: int,
    dropout: float = 0.0,
) -> WideResNet:
    """A Wide ResNet for images (channels, height, width) of 8 pixels or more."""
    check_image(f"wrn_{depth}_{width}", image_shape, smallest=8)
    return WideResNet(depth, width, classes, image_shape[0], dropout)
