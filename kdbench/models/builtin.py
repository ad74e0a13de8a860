"""The built-in networks, registered through the same hook as those of plugins. Does not import torch."""

from __future__ import annotations

from kdbench.hookspecs import ModelSpec, hookimpl

_RESNET = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385"
_WIDE_RESNET = "Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146"
_VGG = (
    "Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, "
    "https://arxiv.org/abs/1409.1556"
)
_MOBILENET = (
    "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, "
    "https://arxiv.org/abs/1801.04381"
)
_SHUFFLENET = (
    "Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, "
    "CVPR 2018, https://arxiv.org/abs/1707.01083"
)
_SHUFFLENET_2 = (
    "Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018, "
    "https://arxiv.org/abs/1807.11164"
)
_DEIT = (
    "Touvron et al., Training data-efficient image transformers & distillation through attention, ICML 2021, "
    "https://arxiv.org/abs/2012.12877"
)


def _resnets() -> list[ModelSpec]:
    target = "kdbench.models.resnet:resnet"
    specs = [
        ModelSpec(f"resnet{depth}", target, {"depth": depth}, _RESNET, f"ResNet of {depth} layers for small images")
        for depth in (8, 14, 20, 32, 44, 56, 110)
    ]
    for depth in (8, 32):
        presets = {"depth": depth, "channels": (32, 64, 128, 256)}
        summary = f"ResNet of {depth} layers for small images, stages four times as wide"
        specs.append(ModelSpec(f"resnet{depth}x4", target, presets, _RESNET, summary))
    return specs


def _wide_resnets() -> list[ModelSpec]:
    return [
        ModelSpec(
            f"wrn_{depth}_{width}",
            "kdbench.models.wide_resnet:wide_resnet",
            {"depth": depth, "width": width},
            _WIDE_RESNET,
            f"Wide ResNet of {depth} layers, width {width}, for small images",
        )
        for depth in (16, 40)
        for width in (1, 2)
    ]


def _vggs() -> list[ModelSpec]:
    return [
        ModelSpec(
            f"vgg{depth}",
            "kdbench.models.vgg:vgg",
            {"depth": depth},
            _VGG,
            f"VGG of {depth} layers with batch normalisation for small images",
        )
        for depth in (8, 11, 13, 16, 19)
    ]


@hookimpl
def kdbench_models() -> list[ModelSpec]:
    """The built-in networks."""
    return [
        *_resnets(),
        *_wide_resnets(),
        *_vggs(),
        ModelSpec(
            "ResNet50",
            "kdbench.models.bottleneck_resnet:resnet50",
            {},
            _RESNET,
            "ResNet-50 with a stem for small images",
        ),
        ModelSpec(
            "MobileNetV2",
            "kdbench.models.mobilenet:mobilenet_v2",
            {"width": 0.5},
            _MOBILENET,
            "MobileNetV2 at half width for small images",
        ),
        ModelSpec(
            "ShuffleNetV1",
            "kdbench.models.shufflenet:shufflenet_v1",
            {},
            _SHUFFLENET,
            "ShuffleNet with three groups for small images",
        ),
        ModelSpec(
            "ShuffleNetV2",
            "kdbench.models.shufflenet:shufflenet_v2",
            {},
            _SHUFFLENET_2,
            "ShuffleNetV2 at width 1 for small images",
        ),
        ModelSpec(
            "deit_micro",
            "kdbench.models.deit:deit",
            {"embed_dim": 48, "depth": 4, "num_heads": 3},
            _DEIT,
            "two-headed vision transformer for small images",
        ),
    ]
