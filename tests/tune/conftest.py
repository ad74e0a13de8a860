"""A suite of seconds on real digits, with a validation split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SUITE = """
name = "tiny"
question = "Which is best?"
seeds = [0, 1]
checkpoint_every = 1

[data]
name = "digits"
train_limit = 96
test_limit = 50
{validation}

[recipe]
epochs = 2
batch_size = 32

[[pairs]]
teacher = "resnet8"
student = "resnet8"
"""


def _text(*methods: str, more: str = "", validation: str = "validation = 24") -> str:
    tables = "".join(f'[[methods]]\nname = "{method}"\n' for method in methods or ("none", "kd"))
    return SUITE.format(validation=validation) + tables + more


@pytest.fixture(scope="session")
def suite_text() -> Callable[..., str]:
    """``suite_text("none", "kd", more="[tune]…", validation="")``: a suite of these methods."""
    return _text


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """The same, as ``tiny.toml``."""

    def to_file(*methods: str, **options: str) -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(_text(*methods, **options))
        return path

    return to_file
