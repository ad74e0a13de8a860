"""What networks from torchvision and timm have in common."""

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
"""A hierarchical network's stages are its last four resolutions, a transformer's the quarters of its blocks."""

RECTIFIERS = (nn.ReLU, nn.ReLU6)
PASSING = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Dropout, nn.Identity)
"""Layers that leave nonnegative values nonnegative, and are not what a stage ends in."""

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
    """What pretrained weights expect of their images.

    ``size``: (height, width) in pixels. ``mean`` and ``std``: per channel, of values scaled to 0..1.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class LibraryModel(TappedModel):
    """A network of another library, kept under ``network``.

    ``preprocessing`` is set where its weights come from elsewhere: then images are converted from the data
    set's normalisation (see :meth:`accept_normalisation`) to that of the weights. The conversion is part of
    the state dictionary, so that saved weights stay right wherever they are loaded.
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
        # x * std + mean undoes the data set's normalisation, (.. - own mean) / own std is the weights'.
        shape = (1, -1, 1, 1)
        given_mean, given_std = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
        own_mean, own_std = torch.tensor(own.mean).view(shape), torch.tensor(own.std).view(shape)
        self.input_scale = given_std / own_std
        self.input_shift = (given_mean - own_mean) / own_std

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) as the network wants them."""
        if self.input_scale is None or self.input_shift is None:
            return images
        return images * self.input_scale + self.input_shift

    def no_weight_decay(self) -> frozenset[str]:
        """See :meth:`TappedModel.no_weight_decay`: what the library's network lists, names or patterns of them."""
        patterns = self.network.no_weight_decay() if hasattr(self.network, "no_weight_decay") else ()
        names = (name for name, _ in self.network.named_parameters())
        return frozenset(f"network.{name}" for name in names if any(fnmatchcase(name, p) for p in patterns))

    def load_file(self, path: str | Path, preprocessing: Preprocessing) -> None:
        """Load weights from a file; ``preprocessing`` is that of the library's files.

        A file that was saved from here says itself how its images were normalised.
        """
        state = read_state_dict(Path(path))
        assign_weights(self, state, Path(path))
        if not any(name.startswith("network.") for name in state):
            self.preprocessing = preprocessing

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # A buffer that is None takes no entry: make room for those that the file has.
        for name in self.optional_entries:
            entry = state_dict.get(f"{prefix}{name}")
            if entry is not None and getattr(self, name) is None:
                setattr(self, name, torch.empty_like(entry))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def parameter_name(self, published: str) -> str:
        """See :meth:`TappedModel.parameter_name`; the library's own files do not have the ``network.``."""
        return published if published.startswith("network.") else f"network.{published}"


def family(name: str) -> str:
    """The architecture's family, from what its name begins with: ``resnet`` for ``wide_resnet50_2``."""
    letters = re.match(r"[a-z]+?(?=v?\d|_|$)", name.lower())
    prefix = letters.group() if letters else name
    return _FAMILIES.get(prefix, prefix)


def forbid_in_place(network: nn.Module) -> None:
    """Make every activation work out of place, as taps before it require."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def weights_not_fetched(model: str, error: Exception) -> ModelError:
    """The error for weights that could not be downloaded."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{model}: its weights could not be downloaded ({reason}); fetch them on a machine with network, "
        "and give the file: weights = 'file.pth'"
    )
