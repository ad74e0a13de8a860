"""The common part of networks from torchvision and timm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.errors import ModelError
from kdbench.models.base import TappedModel
from kdbench.models.weights import assign_weights, read_state_dict

STAGES = 4
"""The stages are the last four resolutions of a hierarchical network, or the quarters of a transformer's blocks."""

RECTIFIERS = (nn.ReLU, nn.ReLU6)
PASSING = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Dropout, nn.Identity)
"""Layers that keep nonnegative values nonnegative, and in which no stage ends."""

_FAMILIES = {
    "wide": "resnet",
    "resnext": "resnet",
    "deit": "vit",
    "regnetv": "regnet",
    "regnetx": "regnet",
    "regnety": "regnet",
    "regnetz": "regnet",
}


@dataclass(frozen=True)
class Preprocessing:
    """The input format of pretrained weights.

    ``size``: (height, width) in pixels. ``mean`` and ``std``: per channel, of values scaled to 0..1.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class LibraryModel(TappedModel):
    """A network of another library, in the submodule ``network``.

    ``preprocessing`` is set for pretrained weights: images are then converted from the data set's
    normalisation (see :meth:`accept_normalisation`) to that of the weights. The conversion is part of
    the state dictionary, so that saved weights include it.
    """

    network: Any
    preprocessing: Preprocessing | None = None
    input_scale: Tensor | None
    input_shift: Tensor | None
    optional_entries: ClassVar[frozenset[str]] = frozenset({"input_scale", "input_shift"})

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("input_scale", None)
        self.register_buffer("input_shift", None)

    def accept_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """See :meth:`TappedModel.accept_normalisation`."""
        own = self.preprocessing
        if own is None or (tuple(mean), tuple(std)) == (own.mean, own.std):
            return
        # x * std + mean undoes the data set's normalisation, (.. - own mean) / own std applies that of the weights.
        shape = (1, -1, 1, 1)
        given_mean, given_std = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
        own_mean, own_std = torch.tensor(own.mean).view(shape), torch.tensor(own.std).view(shape)
        self.input_scale = given_std / own_std
        self.input_shift = (given_mean - own_mean) / own_std

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images (B, channels, H, W) to the network's input format."""
        if self.input_scale is None or self.input_shift is None:
            return images
        return images * self.input_scale + self.input_shift

    def no_weight_decay(self) -> frozenset[str]:
        """See :meth:`TappedModel.no_weight_decay`: the names or patterns that the library's network lists."""
        patterns = self.network.no_weight_decay() if hasattr(self.network, "no_weight_decay") else ()
        names = (name for name, _ in self.network.named_parameters())
        return frozenset(f"network.{name}" for name in names if any(fnmatchcase(name, p) for p in patterns))

    def load_file(self, path: str | Path, preprocessing: Preprocessing) -> None:
        """Load weights from a file; ``preprocessing`` is that of the library's files.

        Files that kdbench saved contain their own preprocessing.
        """
        state = read_state_dict(Path(path))
        assign_weights(self, state, Path(path))
        if not any(name.startswith("network.") for name in state):
            self.preprocessing = preprocessing

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # load_state_dict skips buffers that are None: allocate those that the file contains.
        for name in self.optional_entries:
            entry = state_dict.get(f"{prefix}{name}")
            if entry is not None and getattr(self, name) is None:
                setattr(self, name, torch.empty_like(entry))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def parameter_name(self, published: str) -> str:
        """See :meth:`TappedModel.parameter_name`; the library's files do not have the prefix ``network.``."""
        return published if published.startswith("network.") else f"network.{published}"


def family(name: str) -> str:
    """The architecture's family, from the beginning of its name: ``resnet`` for ``wide_resnet50_2``."""
    letters = re.match(r"[a-z]+?(?=v?\d|_|$)", name.lower())
    prefix = letters.group() if letters else name
    return _FAMILIES.get(prefix, prefix)


def forbid_in_place(network: nn.Module) -> None:
    """Make all activations out of place, as required by taps before them."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def weights_not_fetched(model: str, error: Exception) -> ModelError:
    """The error for weights that could not be downloaded."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{model}: its weights could not be downloaded ({reason}); download them on a machine with network "
        "access and set weights = 'file.pth'"
    )
