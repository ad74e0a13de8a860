"""Any classification network of torchvision, as ``torchvision:NAME``.

The ends of its stages are found in its graph (torch.fx): at each resolution, the last node at the end of a block on
which all later nodes depend. torchvision's feature extraction returns their values, computed by the network's own
layers. If the stages end in a ReLU, its input is the pre-activation tap.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision import models
from torchvision.models.feature_extraction import DualGraphModule, NodePathTracer

from kdbench.errors import ModelError, did_you_mean
from kdbench.models.base import SIGNED, Recorder
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

PROBE_PIXELS = 224
"""Image size for finding the stages, for any data: small images would reach one pixel too early."""

TRACER: dict[str, Any] = {"autowrap_modules": (math, torchvision.ops)}
"""Options of tracing: it includes the inside of torchvision's layers, because stages may end there."""

_RECTIFYING = (F.relu, torch.relu, F.relu6)
_POOLING = (F.adaptive_avg_pool2d, F.avg_pool2d, F.max_pool2d, F.dropout)
_MOVING = (torch.flatten, torch.transpose, torch.permute, torch.chunk, operator.getitem)
_MOVING_METHODS = ("flatten", "mean", "view", "reshape", "transpose", "permute", "contiguous", "chunk")


NO_WEIGHT_DECAY = frozenset({"class_token", "pos_embedding", "relative_position_bias_table"})
"""With ``--transformer-embedding-decay 0``. The script has ``position_embedding``, which no network has.

https://github.com/pytorch/vision/blob/main/references/classification/train.py
"""


@dataclass(frozen=True)
class Tap:
    """The position of a tap in the graph. ``layout``: ``map`` (B, C, H, W), ``last`` (B, H, W, C), ``tokens``."""

    node: str
    nonnegative: bool
    layout: str = "map"
    batch_norm: str | None = None


@dataclass(frozen=True)
class TorchvisionTaps:
    """A network's taps in network order, and the name of its classifier."""

    taps: Mapping[str, Tap]
    classifier: str


class TorchvisionModel(LibraryModel):
    """A network of torchvision with its taps."""

    def __init__(self, name: str, network: nn.Module, places: TorchvisionTaps) -> None:
        super().__init__()
        self.family = family(name)
        self.taps = {tap: place.nonnegative for tap, place in places.taps.items()}
        self.classifier = f"network.{places.classifier}"
        self.head = (self.classifier,)
        self._places = places
        forbid_in_place(network)
        self.network = _extractor(network, {place.node for place in places.taps.values()})

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """See :meth:`TappedModel.forward`."""
        record = Recorder(self, reads)
        images = self.prepare(images)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        outputs = self.network(images)
        for tap, place in self._places.taps.items():
            if record.wants(tap):
                record(tap, _arrange(tap, outputs[place.node], place.layout))
        return record.taps

    def no_weight_decay(self) -> frozenset[str]:
        """See :meth:`TappedModel.no_weight_decay`: what torchvision's training script exempts for transformers."""
        names = (name for name, _ in self.named_parameters())
        return frozenset(name for name in names if name.rpartition(".")[2] in NO_WEIGHT_DECAY)

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """See :meth:`TappedModel.batch_norm_before`."""
        place = self._places.taps.get(tap)
        if place is None or place.batch_norm is None:
            return None
        norm: nn.BatchNorm2d = self.network.get_submodule(place.batch_norm)
        return norm


def _extractor(network: nn.Module, paths: Collection[str]) -> DualGraphModule:
    """A module of the same layers that returns the values of the nodes at ``paths``, in training and evaluation.

    ``create_feature_extractor`` of torchvision does not trace the inside of torchvision's layers (such as
    Conv2dNormActivation), which contain the pre-activations.
    """
    graphs = []
    for training in (True, False):
        network.train(training)
        tracer = NodePathTracer(**TRACER)
        graph = tracer.trace(network)
        nodes = {path: node for node, path in tracer.node_to_qualname.items()}
        for node in list(graph.nodes):
            if node.op == "output":
                graph.erase_node(node)
            elif node.kwargs.get("inplace"):
                node.kwargs = {**node.kwargs, "inplace": False}
        graph.output({path: nodes[path] for path in sorted(paths)})
        graphs.append(graph)
    return DualGraphModule(network, *graphs, class_name=type(network).__name__)


def _arrange(tap: str, value: Tensor, layout: str) -> Tensor:
    if tap == "embedding":
        return value.mean(dim=(2, 3)) if value.ndim == 4 else value
    if layout == "last":
        return value.permute(0, 3, 1, 2)
    if layout == "tokens":
        # The class token comes first; torchvision's transformers take square images only.
        patches = value[:, 1:].transpose(1, 2)
        side = int(patches.shape[2] ** 0.5)
        return patches.unflatten(2, (side, side))  # type: ignore[no-untyped-call, no-any-return]
    return value


class _Graph:
    """A network's graph in eval mode, with the shape of every node's value for square probe images."""

    def __init__(self, network: nn.Module) -> None:
        network.eval()
        tracer = NodePathTracer(**TRACER)
        graph = tracer.trace(network)
        self._network = network
        self.paths: dict[fx.Node, str] = dict(tracer.node_to_qualname)
        self.nodes: list[fx.Node] = list(graph.nodes)
        ShapeProp(fx.GraphModule(network, graph)).propagate(
            torch.zeros(2, 3, PROBE_PIXELS, PROBE_PIXELS, device="meta")
        )

    def module(self, node: fx.Node) -> nn.Module | None:
        return self._network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        meta = node.meta.get("tensor_meta")
        return tuple(getattr(meta, "shape", ()))

    def rectifies(self, node: fx.Node) -> bool:
        """Whether the node is a ReLU."""
        return isinstance(self.module(node), RECTIFIERS) or node.target in _RECTIFYING

    def pools(self, node: fx.Node) -> bool:
        """Whether the node is pooling, flattening or dropout."""
        return isinstance(self.module(node), PASSING) or node.target in _POOLING

    @functools.cache  # noqa: B019 - a graph lives no longer than the search for its taps
    def nonnegative(self, node: fx.Node) -> bool:
        """Whether the node's values are outputs of a ReLU, possibly rearranged, and thus nonnegative."""
        if self.rectifies(node):
            return True
        if node.target is torch.cat:
            return all(self.nonnegative(part) for part in node.all_input_nodes)
        if self.pools(node) or node.target in (*_MOVING, *_MOVING_METHODS):
            return self.nonnegative(node.all_input_nodes[0])
        return False

    def bottlenecks(self) -> list[fx.Node]:
        """The nodes through which all later nodes depend on the input."""
        position = {node: index for index, node in enumerate(self.nodes)}
        found = []
        reach = -1
        for index, node in enumerate(self.nodes):
            if reach <= index:
                found.append(node)
            reach = max(reach, *(position[user] for user in node.users), -1)
        return found

    def block(self, node: fx.Node) -> tuple[str, ...]:
        """The block of a node: the first two parts of its path."""
        return tuple(self.paths.get(node, "").split(".")[:2])


def _layout(shape: tuple[int, ...]) -> tuple[str, int] | None:
    """Layout and side of a map of square images; None if it is not a map."""
    if len(shape) != 4:
        return None
    if shape[2] == shape[3]:
        return "map", shape[2]
    return ("last", shape[1]) if shape[1] == shape[2] else None


def _stage_ends(graph: _Graph, classifier: fx.Node) -> list[tuple[fx.Node, str]]:
    """The end of the last block at each resolution, in network order, with its layout."""
    ends: dict[int, tuple[fx.Node, str]] = {}
    before_classifier = graph.nodes[: graph.nodes.index(classifier)]
    bottlenecks = set(graph.bottlenecks())
    for node, following in zip(before_classifier, graph.nodes[1:], strict=False):
        found = _layout(graph.shape(node))
        if found is None or node.op == "placeholder" or node not in bottlenecks or graph.pools(node):
            continue
        if found[1] > 1 and graph.block(node) != graph.block(following):
            ends[found[1]] = (node, found[0])
    return list(ends.values())


def _batch_norm(graph: _Graph, before: fx.Node) -> str | None:
    """The batch normalisation whose output is ``before``, alone or added to a shortcut."""
    candidates = [before]
    if before.target in (operator.add, operator.iadd, torch.add):
        candidates = [n for n in before.all_input_nodes if "downsample" not in graph.paths.get(n, "")]
    norms = [n for n in candidates if isinstance(graph.module(n), nn.BatchNorm2d)]
    return str(norms[-1].target) if norms else None


def _before_activation(graph: _Graph, end: fx.Node) -> fx.Node | None:
    """The input of a stage's last activation; None if it cannot be determined.

    If a stage ends in a batch normalisation, or in its sum with a shortcut (a linear bottleneck), its end is also
    its pre-activation.
    """
    if graph.rectifies(end):
        return end.all_input_nodes[0]
    return end if _batch_norm(graph, end) else None


def _map_taps(graph: _Graph, classifier: fx.Node) -> dict[str, Tap]:
    ends = _stage_ends(graph, classifier)
    stages, earlier = ends[-STAGES:], ends[:-STAGES]
    taps = {}
    if earlier:
        node, layout = earlier[-1]
        taps["stem"] = Tap(graph.paths[node], graph.nonnegative(node), layout)
    before = [_before_activation(graph, node) for node, _ in stages]
    for i, ((node, layout), source) in enumerate(zip(stages, before, strict=True), start=1):
        # Methods pair pre-activations by stage, so a network has either all of them or none.
        if source is not None and None not in before:
            taps[f"stage{i}/pre"] = Tap(graph.paths[source], SIGNED, layout, _batch_norm(graph, source))
        taps[f"stage{i}"] = Tap(graph.paths[node], graph.nonnegative(node), layout)
    return taps


def _token_taps(graph: _Graph, network: models.VisionTransformer) -> dict[str, Tap]:
    layers = [f"encoder.layers.{name}" for name, _ in network.encoder.layers.named_children()]
    quarters = [layers[quarter * len(layers) // STAGES - 1] for quarter in range(1, STAGES + 1)]
    ends = [[path for path in graph.paths.values() if path.startswith(f"{layer}.")][-1] for layer in quarters]
    return {f"stage{i}": Tap(end, SIGNED, "tokens") for i, end in enumerate(ends, start=1)}


@functools.lru_cache(maxsize=64)
def _places(name: str) -> TorchvisionTaps:
    """The positions of the taps of network ``name``."""
    with torch.device("meta"):
        network = _create(name, 1000, PROBE_PIXELS, weights=None, drop_path=None)
    graph = _Graph(network)
    layers = [n for n in graph.nodes if isinstance(graph.module(n), nn.Linear | nn.Conv2d)]
    classifier = layers[-1]
    if isinstance(network, models.VisionTransformer):
        taps = _token_taps(graph, network)
    else:
        taps = _map_taps(graph, classifier)
    embedding = classifier.all_input_nodes[0]
    while isinstance(graph.module(embedding), nn.Dropout):
        embedding = embedding.all_input_nodes[0]
    taps["embedding"] = Tap(graph.paths[embedding], graph.nonnegative(embedding))
    (output,) = (node for node in graph.nodes if node.op == "output")
    logits = output.all_input_nodes[0]
    taps["logits"] = Tap(graph.paths[logits], graph.nonnegative(logits))
    return TorchvisionTaps(taps, str(classifier.target))


def _create(
    name: str, classes: int, pixels: int, weights: models.WeightsEnum | None, drop_path: float | None
) -> nn.Module:
    settings: dict[str, Any] = {"weights": weights, "num_classes": classes, "progress": False}
    if name.startswith("vit_"):
        settings["image_size"] = pixels
    if name.startswith("maxvit_"):
        settings["input_size"] = (pixels, pixels)
    if name in {"googlenet", "inception_v3"}:
        settings["init_weights"] = False
    if drop_path is not None:
        settings["stochastic_depth_prob"] = drop_path
    try:
        network: nn.Module = models.get_model(name, **settings)
    except NotImplementedError:
        # RegNet computes its widths with tensors; on the meta device they would have no values.
        with torch.device("cpu"):
            network = models.get_model(name, **settings).to("meta")
    # Auxiliary classifiers (GoogLeNet, Inception) are only used in training from labels.
    for part in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, part):
            network.aux_logits = False  # type: ignore[assignment]
            setattr(network, part, None)
    return network


def _find_weights(name: str, weights: str, classes: int) -> models.WeightsEnum:
    offered = models.get_model_weights(name)
    if weights not in offered.__members__:
        hint = did_you_mean(weights, offered.__members__)
        raise ModelError(f"torchvision:{name}: no file and no weights called '{weights}'{hint}")
    found = offered[weights]
    if len(found.meta["categories"]) != classes:
        theirs = len(found.meta["categories"])
        raise ModelError(f"torchvision:{name}: weights {weights} have {theirs} classes, the data has {classes}")
    return found


def _preprocessing(weights: models.WeightsEnum) -> Preprocessing:
    transform = weights.transforms()
    return Preprocessing((transform.crop_size[0],) * 2, tuple(transform.mean), tuple(transform.std))


@functools.lru_cache(maxsize=64)
def _try_images(name: str, image_shape: tuple[int, int, int]) -> None:
    """Raise an error for unsupported image sizes; on the meta device, any error concerns shapes."""
    size = "x".join(map(str, image_shape))
    if image_shape[0] not in (1, 3):
        raise ModelError(f"torchvision:{name}: images must have 1 or 3 channels, got {size}")
    try:
        with torch.device("meta"):
            network = _create(name, 10, image_shape[1], weights=None, drop_path=None)
            network.eval()(torch.zeros(2, 3, *image_shape[1:]))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"torchvision:{name}: cannot take images of {size} ({reason})") from error


def build(
    *,
    name: str,
    classes: int,
    image_shape: tuple[int, int, int],
    weights: str | None = None,
    drop_path: float | None = None,
) -> TorchvisionModel:
    """torchvision's network ``name`` for images (channels, height, width); grey images are repeated to three channels.

    ``weights``: torchvision's name of them (``IMAGENET1K_V1``, ``DEFAULT``), or a file. ``drop_path``: the
    last block's probability of stochastic depth, by default that of the network.
    """
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision has no network called '{name}'{did_you_mean(name, known)}")
    _try_images(name, tuple(image_shape))
    is_file = weights is not None and Path(weights).is_file()
    pretrained = _find_weights(name, weights, classes) if weights is not None and not is_file else None
    try:
        network = _create(name, classes, image_shape[1], pretrained, drop_path)
    except TypeError as error:
        raise ModelError(f"torchvision:{name}: drop_path cannot be set for this network") from error
    except ValueError as error:
        raise ModelError(f"torchvision:{name}: weights {weights} do not fit ({error})") from error
    except (OSError, RuntimeError) as error:
        raise weights_not_fetched(f"torchvision:{name}", error) from error
    model = TorchvisionModel(name, network, _places(name))
    if weights is not None:
        preprocessing = _preprocessing(pretrained or models.get_model_weights(name)["DEFAULT"])
        if is_file:
            model.load_file(weights, preprocessing)
        else:
            model.preprocessing = preprocessing
    return model
