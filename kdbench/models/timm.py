"""Any network of timm, as ``timm:NAME`` (``timm:NAME.TAG`` for certain weights).

The stages are maps of timm's feature information: the last one at each of the four lowest resolutions or, if all
maps have the same resolution, those after each quarter. timm's ``forward_intermediates`` returns them as
(B, C, H, W). If the stages end in a ReLU, its input is the pre-activation tap.

Networks with a second head (distilled DeiT and others) return the logits of both heads separately.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from kdbench.errors import ModelError, did_you_mean
from kdbench.models.base import NONNEGATIVE, SIGNED, Recorder
from kdbench.models.deit import TappedDeiT
from kdbench.models.library import (
    PASSING,
    RECTIFIERS,
    STAGES,
    LibraryModel,
    Preprocessing,
    family,
    forbid_in_place,
    weights_not_fetched,
)

Network: TypeAlias = Any
"""A network of timm, which has no type annotations."""


@dataclass(frozen=True)
class TimmTaps:
    """The positions of a network's taps.

    ``maps``: the index of each map tap among timm's intermediate features. ``rectifiers``: the ReLU whose output is
    a map tap, if there is one. ``batch_norms``: the last normalisation before that ReLU.
    ``classifiers``: the last layers of the class head and, if there is one, of the second head.
    """

    maps: dict[str, int]
    rectifiers: dict[str, str]
    batch_norms: dict[str, str]
    classifiers: tuple[str, ...]
    nonnegative_embedding: bool


class TimmModel(LibraryModel):
    """A network of timm with its taps."""

    def __init__(self, name: str, network: Network, places: TimmTaps) -> None:
        super().__init__()
        self.family = family(name)
        self.network = network
        forbid_in_place(network)
        self.classifier = f"network.{places.classifiers[0]}"
        self.head = tuple(f"network.{layer}" for layer in places.classifiers)
        self._places = places
        stages = [tap for tap in places.maps if tap != "stem"]
        # Methods pair pre-activations by stage, so a network has either all of them or none.
        has_pre = all(stage in places.rectifiers for stage in stages)
        self.taps = {}
        for tap in places.maps:
            if has_pre and tap != "stem":
                self.taps[f"{tap}/pre"] = SIGNED
            self.taps[tap] = NONNEGATIVE if tap in places.rectifiers else SIGNED
        self.taps["embedding"] = NONNEGATIVE if places.nonnegative_embedding else SIGNED
        self.taps["logits"] = SIGNED
        if len(places.classifiers) > 1:
            self.taps["dist_logits"] = SIGNED

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        maps = {tap: index for tap, index in self._places.maps.items() if record.wants(tap)}
        indices = sorted(maps.values()) or [max(self._places.maps.values())]
        values: dict[str, Tensor] = {}
        with self._watching(record, values):
            features, given = self.network.forward_intermediates(self.prepare(images), indices=indices)
            logits = self.network.forward_head(features)
        values.setdefault("logits", logits)
        values |= {tap: given[indices.index(index)] for tap, index in maps.items()}
        for tap in self.taps:
            if record.wants(tap):
                record(tap, values[tap])
        return record.taps

    @contextlib.contextmanager
    def _watching(self, record: Recorder, values: dict[str, Tensor]) -> Iterator[None]:
        """Context in which the values at the layers of taps are stored in ``values``.

        The hooks exist for one pass only, so that copies of the network have none.
        """
        handles = []

        def watch(layer: str, tap: str, take: Callable[[Any, Any], Tensor]) -> None:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                values[tap] = take(inputs, output)

            handles.append(self.network.get_submodule(layer).register_forward_hook(hook))

        for tap, layer in self._places.rectifiers.items():
            if f"{tap}/pre" in self.taps and record.wants(f"{tap}/pre"):
                watch(layer, f"{tap}/pre", lambda inputs, output: inputs[0])
        classifiers = self._places.classifiers
        watch(classifiers[0], "embedding", lambda inputs, output: _pooled(inputs[0]))
        if len(classifiers) > 1:
            watch(classifiers[0], "logits", lambda inputs, output: output)
            watch(classifiers[1], "dist_logits", lambda inputs, output: output)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """See :meth:`TappedModel.batch_norm_before`."""
        layer = self._places.batch_norms.get(tap.removesuffix("/pre")) if tap.endswith("/pre") else None
        return self.network.get_submodule(layer) if layer else None


def _pooled(value: Tensor) -> Tensor:
    return value.mean(dim=(2, 3)) if value.ndim == 4 else value


def _choose_maps(network: Network) -> dict[str, int]:
    """The indices of the stages, and of the stem if there is one before them."""
    reductions = [info["reduction"] for info in network.feature_info]
    if len(set(reductions)) == 1:
        count = len(reductions)
        if count < STAGES:
            raise ModelError(f"it has {count} blocks of the same resolution, {STAGES} are needed for {STAGES} stages")
        return {f"stage{i}": i * count // STAGES - 1 for i in range(1, STAGES + 1)}
    last = {reduction: index for index, reduction in enumerate(reductions)}
    ends = sorted(last.values())
    maps = {"stem": ends[-STAGES - 1]} if len(ends) > STAGES else {}
    return maps | {f"stage{i}": index for i, index in enumerate(ends[-STAGES:], start=1)}


@dataclass
class _Call:
    layer: str
    module: nn.Module
    output: Any
    index: int


def _trace(network: Network, run: Callable[[], Any]) -> tuple[list[_Call], Any]:
    """The layers (modules without submodules) that ran, in order, with their outputs; and the result of ``run``."""
    calls: list[_Call] = []
    handles = []
    for name, module in network.named_modules():
        # timm's normalisation with activation is one layer, although it has submodules.
        if not list(module.children()) or isinstance(module, nn.BatchNorm2d):

            def hook(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                calls.append(_Call(name, module, output, len(calls)))

            handles.append(module.register_forward_hook(hook))
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return calls, result


def _batch_norm(calls: list[_Call], rectifier: _Call) -> str | None:
    """The last batch normalisation before a ReLU, without that of a shortcut."""
    for call in reversed(calls[: rectifier.index]):
        if isinstance(call.module, nn.BatchNorm2d) and "downsample" not in call.layer:
            return call.layer
        if isinstance(call.module, RECTIFIERS):
            return None
    return None


def _find_classifiers(network: Network, calls: list[_Call]) -> tuple[str, ...]:
    names = {module: name for name, module in network.named_modules()}
    heads = network.get_classifier()
    if isinstance(heads, tuple):
        return tuple(names[head] for head in heads)
    layers = [call for call in calls if isinstance(call.module, nn.Linear | nn.Conv2d)]
    return (layers[-1].layer,)


@functools.lru_cache(maxsize=64)
def _places(name: str, image_shape: tuple[int, int, int]) -> TimmTaps:
    """The positions of the taps of network ``name``, found by running it on the meta device."""
    with torch.device("meta"):
        network = _create(name, 10, image_shape, pretrained=False, drop_path=0.0).eval()
        forbid_in_place(network)
        images = torch.zeros(2, *image_shape)
    maps = _choose_maps(network)
    calls, (features, given) = _trace(
        network, lambda: network.forward_intermediates(images, indices=sorted(maps.values()))
    )
    rectified = {id(call.output): call for call in calls if isinstance(call.module, RECTIFIERS)}
    rectifiers, batch_norms = {}, {}
    for tap, index in maps.items():
        call = rectified.get(id(given[sorted(maps.values()).index(index)]))
        if call is not None:
            rectifiers[tap] = call.layer
            norm = _batch_norm(calls, call)
            if norm is not None:
                batch_norms[tap] = norm
    head_calls, _ = _trace(network, lambda: network.forward_head(features))
    classifiers = _find_classifiers(network, head_calls)
    pooling = itertools.takewhile(lambda call: not f"{call.layer}.".startswith(f"{classifiers[0]}."), head_calls)
    nonnegative = id(features) in rectified and all(_only_pools(call.module) for call in pooling)
    return TimmTaps(maps, rectifiers, batch_norms, classifiers, nonnegative)


def _only_pools(module: nn.Module) -> bool:
    return isinstance(module, (*PASSING, FastAdaptiveAvgPool))


def _create(
    name: str, classes: int, image_shape: tuple[int, int, int], *, pretrained: bool, drop_path: float
) -> Network:
    settings: dict[str, Any] = {"num_classes": classes, "in_chans": image_shape[0]}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        settings["img_size"] = image_shape[1:]
    if drop_path:
        settings["drop_path_rate"] = drop_path
    return timm.create_model(name, pretrained=pretrained, **settings)


def _preprocessing(network: Network, channels: int) -> Preprocessing:
    config = network.pretrained_cfg
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if channels != len(mean):
        # timm then sums or repeats the first layer's weights over the channels.
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return Preprocessing(tuple(config["input_size"][1:]), mean, std)


def build(
    *,
    name: str,
    classes: int,
    image_shape: tuple[int, int, int],
    weights: str | None = None,
    drop_path: float = 0.0,
) -> TimmModel | TappedDeiT:
    """timm's network ``name`` for images (channels, height, width).

    ``weights``: ``timm`` for timm's pretrained weights, or a file. ``drop_path``: the last block's probability
    of stochastic depth.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(name) and not timm.is_model(architecture):
        raise ModelError(f"timm has no network called '{name}'{did_you_mean(name, timm.list_models())}")
    pretrained = weights == "timm"
    if weights is not None and not pretrained and not Path(weights).is_file():
        raise ModelError(
            f"timm:{name}: no file called '{weights}'; weights must be a file, or 'timm' for those of timm"
        )
    if pretrained:
        config = timm.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            raise ModelError(f"timm:{name}: timm has no weights for it")
        if config.num_classes != classes:
            raise ModelError(f"timm:{name}: timm's weights have {config.num_classes} classes, the data has {classes}")
    shape = tuple(image_shape)
    places = _try(name, image_shape, lambda: _places(name, shape))
    try:
        network = _create(name, classes, image_shape, pretrained=pretrained, drop_path=drop_path)
    except TypeError as error:
        raise ModelError(f"timm:{name}: drop_path cannot be set for this network") from error
    except (OSError, RuntimeError) as error:
        raise weights_not_fetched(f"timm:{name}", error) from error
    model: TimmModel | TappedDeiT
    two_tokens = isinstance(network, VisionTransformerDistilled)
    model = TappedDeiT(network) if two_tokens else TimmModel(name, network, places)
    if pretrained:
        model.preprocessing = _preprocessing(network, image_shape[0])
    elif weights is not None:
        model.load_file(weights, _preprocessing(network, image_shape[0]))
    return model


def _try(name: str, image_shape: tuple[int, int, int], find: Callable[[], TimmTaps]) -> TimmTaps:
    try:
        return find()
    except ModelError as error:
        raise ModelError(f"timm:{name}: {error}") from error
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, image_shape))
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"timm:{name}: cannot take images of {size} ({reason})") from error
