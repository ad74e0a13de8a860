"""The networks that come with kdbench, offered through the same hook as anybody's. Imports no torch."""

from __future__ import annotations

from kdbench.hookspecs import ModelSpec, hookimpl

_RESNET = (
    "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385"
)
_DEIT = (
    "Touvron et al., Training data-efficient image transformers & distillation through attention, ICML 2021, "
    "https://arxiv.org/abs/2012.12877"
)


def _resnets() -> list[ModelSpec]:
    target = "kdbench.models.resnet:resnet"
    specs = [
        ModelSpec(
            f"resnet{depth}", target, {"depth": depth}, _RESNET, f"ResNet of {depth} layers for small images"
        )
        for depth in (8, 14, 20, 32, 44, 56, 110)
    ]
    for depth in (8, 32):
        presets = {"depth": depth, "channels": (32, 64, 128, 256)}
        summary = f"ResNet of {depth} layers for small images, stages four times as wide"
        specs.append(ModelSpec(f"resnet{depth}x4", target, presets, _RESNET, summary))
    return specs


@hookimpl
def kdbench_models() -> list[ModelSpec]:
    """Offer the networks."""
    return [
        *_resnets(),
        ModelSpec(
            "deit_micro",
            "kdbench.models.deit:deit",
            {"embed_dim": 64, "depth": 4, "num_heads": 4},
            _DEIT,
            "two-headed vision transformer for small images",
        ),
    ]
