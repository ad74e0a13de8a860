"""The file formats of exported students."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdbench.errors import ExportError, ModelError
from kdbench.export.student import Student, state
from kdbench.models.weights import load_checkpoint

Format: TypeAlias = Literal["safetensors", "torch", "onnx"]
SUFFIXES: Mapping[Format, str] = {"safetensors": ".safetensors", "torch": ".pt", "onnx": ".onnx"}

HEADER = "kdbench"
"""The entry of a file's metadata that holds the header, as JSON."""
TOLERANCE = 1e-4
"""Absolute and relative tolerance for the logits of an ONNX program."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check(to: str) -> None:
    """Raise :class:`ExportError` if a format is unknown or needs a package that is not installed."""
    if to not in get_args(Format):
        raise ExportError(f"format '{to}' is unknown; known: {', '.join(get_args(Format))}")
    missing = [name for name in _ONNX_PACKAGES if to == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"export to onnx needs {' and '.join(missing)}: pip install 'kdbench[export]'")


def write(to: Format, path: Path, student: Student, header: Mapping[str, Any]) -> None:
    """Write ``student`` with ``header`` about it."""
    if to == "safetensors":
        path.write_bytes(save(state(student), {"format": "pt", HEADER: json.dumps(header)}))
    elif to == "torch":
        torch.save({"state_dict": state(student), "facts": dict(header)}, path)
    else:
        _write_onnx(path, student, header)


def _write_onnx(path: Path, student: Student, header: Mapping[str, Any]) -> None:
    shape = header["student"]["image_shape"]
    generator = torch.Generator().manual_seed(0)
    example, other = (torch.randn(batch, *shape, generator=generator) for batch in (2, 3))
    program = torch.onnx.export(
        student,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    if program is None:
        raise ExportError("torch returned no ONNX program")
    program.model.metadata_props[HEADER] = json.dumps(header)
    program.save(path, external_data=False)
    compare(path, student, other)


def compare(path: Path, student: Student, images: Tensor) -> None:
    """Run a written program on ``images``. Raises :class:`ExportError` if its logits differ from the student's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = student(images)
    if not torch.allclose(torch.from_numpy(given), expected, rtol=TOLERANCE, atol=TOLERANCE):
        off = (torch.from_numpy(given) - expected).abs().max().item()
        raise ExportError(f"the ONNX program's logits differ by {off:.2g}; export to safetensors or torch instead")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the header of an exported file. Raises :class:`ExportError`."""
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    if path.suffix == SUFFIXES["onnx"]:
        raise ExportError(f"{path}: is an ONNX program; run it with onnxruntime, as its model card shows")
    weights, header = read_safetensors(path) if path.suffix == SUFFIXES["safetensors"] else _read_torch(path)
    if header is None:
        raise ExportError(f"{path}: has no description of a student; it was not written by kdbench export")
    return weights, header


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The weights, and the header or None. Raises :class:`ExportError`."""
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            header = (file.metadata() or {}).get(HEADER)
        return weights, json.loads(header) if header else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: is truncated or not a safetensors file") from error


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        content = load_checkpoint(path)
    except ModelError:
        raise
    except Exception as error:  # a damaged file may fail in any way
        raise ExportError(f"{path}: is truncated or not a checkpoint of weights only") from error
    if not isinstance(content, Mapping) or not {"state_dict", "facts"} <= content.keys():
        return {}, None
    return dict(content["state_dict"]), dict(content["facts"])
