"""The hash of the weights in a safetensors file, as ``models.weights.weights_sha256`` gives it, without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from kdbench.errors import ResultsError

_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
"""Types of a safetensors file, in torch's words."""
_LARGEST_HEADER_BYTES = 100 * 2**20
_CHUNK_BYTES = 2**20


def weights_digest(path: Path) -> str:
    """SHA-256 over the names (sorted), types, shapes and values of the tensors in a safetensors file.

    Unlike the hash of the file, it does not depend on the order of the tensors and on the file's metadata.

    Raises:
        ResultsError: the file cannot be read, or is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            return _digest(file, path.stat().st_size)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{path}: is truncated or not a safetensors file") from error


def _digest(file: BinaryIO, size: int) -> str:
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, _LARGEST_HEADER_BYTES):
        raise ValueError("header")
    tensors: dict[str, Any] = json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        begin, end = tensors[name]["data_offsets"]
        if not 0 <= begin <= end <= size - 8 - length:
            raise ValueError(name)
        shape = ",".join(str(int(width)) for width in tensors[name]["shape"])
        digest.update(f"{name}\0torch.{_TYPES[tensors[name]['dtype']]}\0{shape}\0".encode())
        file.seek(8 + length + begin)
        left = end - begin
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ValueError(name)
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
