"""Folds the batch normalisations of a frozen network into the convolutions before them."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdbench.models.base import TappedModel

CLOSE = 1e-9
"""The largest difference of a tap in float64, relative to its largest value."""


def folded(network: TappedModel, image_shape: tuple[int, int, int]) -> TappedModel:
    """A copy of ``network``, in eval mode, in which convolutions do the work of the normalisations after them.

    Its taps have the same values up to rounding, which is verified in float64 on random images of ``image_shape``
    (channels, height, width). Where a tap would change, as it may if something else reads what a convolution returns,
    ``network`` itself is returned; so is one without such normalisations, as pre-activation networks, and one that does
    not compute in float64.
    """
    images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = copy.deepcopy(network).cpu().double().eval()
    try:
        pairs, expected = _observed(plain, images)
    except RuntimeError:
        return network
    if not pairs:
        return network
    made = copy.deepcopy(network).eval()
    _fold(plain, pairs)
    if not _alike(expected, _taps(plain, images)):
        return network
    _fold(made, pairs)
    return made.to(memory_format=torch.channels_last)


def _taps(network: TappedModel, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: value.clone() for name, value in network(images, tuple(network.taps)).items()}


def _observed(network: TappedModel, images: Tensor) -> tuple[list[tuple[str, str]], dict[str, Tensor]]:
    """Names of convolutions and the normalisations that get their outputs, and the taps."""
    names = {module: name for name, module in network.named_modules()}
    made: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []
    calls: Counter[str] = Counter()

    def note(module: nn.Module, arguments: Any, output: Tensor) -> None:
        calls[names[module]] += 1
        if type(module) is nn.Conv2d:
            made[id(output)] = names[module], output
        elif id(arguments[0]) in made:
            pairs.append((made[id(arguments[0])][0], names[module]))

    hooks = [module.register_forward_hook(note) for module in names if _is_convolution_or_normalisation(module)]
    try:
        taps = _taps(network, images)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1], taps


def _is_convolution_or_normalisation(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d or (type(module) is nn.BatchNorm2d and module.running_var is not None)


def _fold(network: nn.Module, pairs: list[tuple[str, str]]) -> None:
    for convolution, normalisation in pairs:
        modules: Any = network.get_submodule(convolution), network.get_submodule(normalisation)
        fused = fuse_conv_bn_eval(*modules)
        network.set_submodule(convolution, fused.requires_grad_(False))
        network.set_submodule(normalisation, nn.Identity())


def _alike(expected: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    if expected.keys() != found.keys():
        return False
    return all(
        value.shape == found[name].shape and bool((value - found[name]).abs().max() <= CLOSE * value.abs().max())
        for name, value in expected.items()
    )
