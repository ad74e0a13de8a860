"""Reads and writes weight files, and computes the hash of weights.

A file is a safetensors file or a torch checkpoint; the latter is read with ``weights_only=True``, so that
no code in it ever runs. The state dictionary is the whole content or an entry ``model``, ``state_dict``, ``net`` or
``model_state_dict``; names may start with ``module.`` (saved from DataParallel) or ``_orig_mod.`` (saved from a
compiled model).

The built-in networks use the names of the CRD study's public checkpoints
(https://github.com/HobbitLong/RepDistiller), except for these, which ``published_names`` of each class maps:

==================================  ==================  ==========
network                             in the checkpoint   here
==================================  ==================  ==========
ResNet 8 .. 110, 8x4, 32x4          (all the same)
Wide ResNet                         ``convShortcut``    ``shortcut``
VGG                                 ``classifier``      ``fc``
ResNet50, ShuffleNetV1 and V2       ``linear``          ``fc``
MobileNetV2                         ``classifier.0``    ``fc``
==================================  ==================  ==========

Networks from torchvision and timm have the prefix ``network.`` here; their own files have the names without it.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdbench.errors import ModelError
from kdbench.models.base import TappedModel
from kdbench.results import Check, write_atomically
from kdbench.words import listed

_CONTAINERS = ("model", "state_dict", "net", "model_state_dict")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 3


def load_weights(model: TappedModel, path: str | Path) -> None:
    """Load all weights of ``model`` from a file.

    Raises :class:`ModelError` if the file is missing, damaged, not a checkpoint, or of another network or number of
    classes. The model is then not changed.
    """
    assign_weights(model, read_state_dict(Path(path)), Path(path))


def assign_weights(model: TappedModel, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dictionary that was read from ``path``; see :func:`load_weights`."""
    own = model.state_dict()
    known = {*own, *model.optional_entries}
    given = {name if name in known else model.parameter_name(name): tensor for name, tensor in state.items()}
    classifier = f"{model.classifier}.weight"
    if classifier in given and given[classifier].shape[:1] != own[classifier].shape[:1]:
        theirs, ours = len(given[classifier]), len(own[classifier])
        raise ModelError(f"{path}: its classifier has {theirs} classes, the data has {ours}")
    # Checkpoints from before torch 0.4.1 have no batch counts; these do not affect results.
    missing = [
        name
        for name in own
        if name not in given and name not in model.optional_entries and not name.endswith(".num_batches_tracked")
    ]
    unexpected = [name for name in given if name not in known]
    if missing or unexpected:
        parts = [("missing", missing), ("unexpected", unexpected)]
        found = ", ".join(f"{what} {listed(names, _SHOWN)}" for what, names in parts if names)
        raise ModelError(f"{path}: the weights are not those of this {type(model).__name__}: {found}")
    for name, tensor in given.items():
        if name in own and tensor.shape != own[name].shape:
            raise ModelError(
                f"{path}: the weights are not those of this {type(model).__name__}: {name} is "
                f"{_shape(tensor)}, the model needs {_shape(own[name])}"
            )
    model.load_state_dict(given, strict=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dictionary in a file, with its names there, without prefixes such as ``module.``."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; weights are a .pth, .pt or .safetensors file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else load_checkpoint(path)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(_unreadable(path, error)) from error
    except Exception as error:  # a damaged file may fail in any way
        raise ModelError(f"{path}: the file is truncated or not a checkpoint") from error
    state = _find_state(content)
    if state is None:
        held = (
            f"contains {listed(sorted(map(str, content)), _SHOWN) or 'nothing'}"
            if isinstance(content, Mapping)
            else "is not a dictionary"
        )
        raise ModelError(f"{path}: no state dictionary in it (it {held}); save model.state_dict()")
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_checkpoint(path: Path) -> Any:
    """Read a file of ``torch.save`` with tensors and plain values; no code in it is run.

    Raises errors of torch if the file is damaged, and :class:`ModelError` if it is compressed: torch never compresses
    files, and a small compressed file could fill the memory.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ModelError(f"{path}: is compressed ({unpacked:,} bytes unpacked); save it with torch.save")
    # The last checkpoints of the CRD study contain command-line arguments: plain values in a Namespace.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> str:
    stranger = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if stranger is None:
        return f"{path}: the file is truncated or not a checkpoint"
    return f"{path}: contains a {stranger.group(1)}; for safety, only tensors are read; save only the state dictionary"


def _find_state(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        return None
    return dict(content)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def write_weights(path: Path, state: Mapping[str, Tensor], check: Check = None) -> None:
    """Write a state dictionary of contiguous CPU tensors as a safetensors file, atomically.

    ``check`` is called right before an old file is replaced.

    Raises:
        ResultsError: the file cannot be written.
    """
    # Not save_file: its temporary file stays after a kill, and only its owner can read the result.
    # Serialised first: an error here comes from the state, not from the disk.
    content = save(dict(state))
    write_atomically(path, lambda temporary: _fill(temporary, content), check)


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def weights_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over the names (sorted), types, shapes and values of a state dictionary.

    It does not depend on the device or the memory format of the tensors.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{tensor.dtype}\0{shape}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
