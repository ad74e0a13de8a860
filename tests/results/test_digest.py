"""The hash of weights without torch is the one with torch."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from kdbench.errors import ResultsError
from kdbench.models.weights import weights_sha256
from kdbench.results.digest import weights_digest

TYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float8_e4m3fn", "float8_e5m2",
    "float16", "bfloat16", "float32", "float64", "complex64",
)  # fmt: skip


def test_each_type_and_shape_has_the_hash_of_torch(tmp_path):
    state = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in TYPES}
    state |= {"a scalar": torch.tensor(3.5), "nothing": torch.empty(0, 4), "größe": torch.randn(5)}
    save_file(state, tmp_path / "x.safetensors", metadata={"made": "here"})
    assert weights_digest(tmp_path / "x.safetensors") == weights_sha256(state)


def test_another_value_name_or_shape_has_another_hash(tmp_path):
    states = [{"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.ones(2, 3)}]
    found = set()
    for state in states:
        save_file(state, tmp_path / "x.safetensors")
        found.add(weights_digest(tmp_path / "x.safetensors"))
    assert len(found) == 4


def header(content: object, more: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + more


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"weights",
        b"\xff" * 16,
        header([1]),
        header({"a": 5}),
        header({"a": {"dtype": "F32", "shape": [1]}}),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"0000"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"0000"),
    ],
)
def test_what_is_no_safetensors_file_is_named(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ResultsError) as error:
        weights_digest(path)
    assert str(error.value) == f"{path}: is truncated or not a safetensors file"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResultsError) as error:
        weights_digest(tmp_path / "x")
    assert str(error.value) == f"{tmp_path / 'x'}: cannot be read: No such file or directory"
