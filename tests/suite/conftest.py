"""A small suite, as a file and as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdbench import resolve
from kdbench.discovery import built_in
from kdbench.hookspecs import Spec
from kdbench.suite import load
from kdbench.suite.schema import Suite

SUITE = """
name = "small"
question = "Does it work?"
seeds = [0, 1]

[data]
name = "digits"

[recipe]
epochs = 10
drops = [5, 8]
augmentation = [{ name = "crop", padding = 2 }, { name = "flip" }]

[[pairs]]
teacher = "resnet20"
student = "resnet8"

[[methods]]
name = "none"
[[methods]]
name = "kd"
temperature = 2.0
"""


class Catalogue:
    """Knows a few names, and no settings but those."""

    methods: Mapping[str, tuple[str, ...]] = {"none": (), "kd": ("temperature", "weight")}
    models = ("resnet20", "resnet8")

    def method_problems(self, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        if name not in self.methods:
            return [("", f"method '{name}' is not registered")]
        return [(key, "unknown setting") for key in settings if key not in self.methods[name]]

    def model_problems(self, name: str) -> list[tuple[str, str]]:
        return [] if name in self.models else [("", f"model '{name}' is not registered")]

    def data_problems(self, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        if name != "digits":
            return [("", f"data set '{name}' is not registered")]
        return [(key, "unknown setting") for key in settings]

    def part_problems(self, spec: type[Spec], name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        return resolve.RegistryCatalogue(built_in()).part_problems(spec, name, settings)

    def addition_problems(self, key: str, name: str) -> list[str]:
        return [] if name == "gap" else [f"{key}: '{name}' is not registered"]


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def open_small(suite_file: Path) -> Callable[..., Suite]:
    """Loads the small suite after ``--set`` overrides."""

    def open_(*overrides: str) -> Suite:
        return load.load(suite_file, load.read(suite_file, overrides), Catalogue())

    return open_


@pytest.fixture
def problems_of(suite_file: Path, open_small: Callable[..., Suite]) -> Callable[..., list[str]]:
    """The problems of the small suite after overrides, without the file's name that each opens with."""
    from kdbench.errors import SuiteError

    def problems(*overrides: str) -> list[str]:
        with pytest.raises(SuiteError) as caught:
            open_small(*overrides)
        assert all(problem.startswith(f"{suite_file}: ") for problem in caught.value.problems)
        return [problem.removeprefix(f"{suite_file}: ") for problem in caught.value.problems]

    return problems
