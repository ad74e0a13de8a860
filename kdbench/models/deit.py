"""Transformers with two output tokens: DeiT (Touvron 2021, https://arxiv.org/abs/2012.12877), from timm.

In addition to the class token, a DeiT has a distillation token with a separate classifier. timm averages the
two heads in evaluation. Here both are returned, in training and in evaluation, and the method
decides which of them it trains and how it predicts.
"""

from __future__ import annotations

from collections.abc import Collection

from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from kdbench.errors import ModelError
from kdbench.models.base import SIGNED, Recorder, check_image
from kdbench.models.library import STAGES, LibraryModel


class TappedDeiT(LibraryModel):
    """timm's two-headed vision transformer, with its taps.

    ``stageI``: the patch tokens after the I-th quarter of the blocks, as a (B, D, h, w) map. ``embedding``:
    the class token after the final normalisation, (B, D). ``logits`` and ``dist_logits``: the two heads'.
    """

    family = "vit"
    head = ("network.head", "network.head_dist")
    classifier = "network.head"

    def __init__(self, network: VisionTransformerDistilled) -> None:
        super().__init__()
        self.network = network
        depth = len(network.blocks)
        if depth < STAGES:
            raise ModelError(f"a transformer needs at least {STAGES} blocks to have {STAGES} stages, got {depth}")
        self._last_blocks = {quarter * depth // STAGES - 1: quarter for quarter in range(1, STAGES + 1)}
        names = [*(f"stage{i}" for i in range(1, STAGES + 1)), "embedding", "logits", "dist_logits"]
        self.taps = dict.fromkeys(names, SIGNED)

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        network = self.network
        height, width = network.patch_embed.dynamic_feat_size(images.shape[2:])
        tokens = network._pos_embed(network.patch_embed(self.prepare(images)))
        tokens = network.norm_pre(network.patch_drop(tokens))
        for index, block in enumerate(network.blocks):
            tokens = block(tokens)
            if index in self._last_blocks:
                patches = tokens[:, network.num_prefix_tokens :]
                tap = f"stage{self._last_blocks[index]}"
                record(tap, patches.transpose(1, 2).unflatten(2, (height, width)))
        tokens = network.norm(tokens)
        embedding = record("embedding", tokens[:, 0])
        record("logits", network.head(network.head_drop(embedding)))
        if record.wants("dist_logits"):
            record("dist_logits", network.head_dist(network.head_drop(tokens[:, 1])))
        return record.taps


def suitable_patch_size(image_shape: tuple[int, int, int]) -> int:
    """A patch size for images (channels, height, width).

    The smallest of 4, 8, 16 pixels that divides the image into at most 64 patches, otherwise the largest that
    divides it: 4 for 8 to 32 pixels, 8 for 64, 16 for 224; 2 if none of these divides it.
    """
    _, height, width = image_shape
    dividing = [size for size in (2, 4, 8, 16) if height % size == 0 and width % size == 0]
    if not dividing:
        raise ModelError(f"deit: the image's sides must be even, got {height}x{width}; give patch_size")
    few = [size for size in dividing if size > 2 and (height // size) * (width // size) <= 64]
    return few[0] if few else dividing[-1]


def deit(
    *,
    classes: int,
    image_shape: tuple[int, int, int],
    embed_dim: int,
    depth: int,
    num_heads: int,
    patch_size: int | None = None,
    drop_path: float = 0.0,
) -> TappedDeiT:
    """A small DeiT for images (channels, height, width) of 8 pixels or more.

    ``drop_path``: the last block's probability of stochastic depth; it increases linearly from 0 at the first.
    """
    check_image("deit", image_shape, smallest=8)
    network = VisionTransformerDistilled(
        img_size=image_shape[1:],
        patch_size=patch_size or suitable_patch_size(image_shape),
        in_chans=image_shape[0],
        num_classes=classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        drop_path_rate=drop_path,
    )
    return TappedDeiT(network)
