"""What the tests of the zoo share: every network that comes with kdbench, built by its offer."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest
import torch

from kdbench.models.builtin import kdbench_models

SPECS = {spec.name: spec for spec in kdbench_models()}


@pytest.fixture(scope="session")
def build():
    """``build(name, classes=, image_shape=, **settings)``: a fresh network, as the registry builds it."""

    def build(name, *, classes=100, image_shape=(3, 32, 32), **settings):
        spec = SPECS[name]
        module, function = spec.target.split(":")
        factory = getattr(importlib.import_module(module), function)
        return factory(classes=classes, image_shape=image_shape, **{**spec.presets, **settings})

    return build


@pytest.fixture(scope="session")
def published():
    """The CRD study's networks: name -> (parameters at 100 classes, shapes of stem, stages, embedding)."""
    rows = {}
    with (Path(__file__).parent / "crd_models.csv").open(newline="") as file:
        for name, parameters, shapes in list(csv.reader(file))[1:]:
            rows[name] = (int(parameters), [tuple(map(int, s.split("x"))) for s in shapes.split(";")])
    return rows


@pytest.fixture
def images():
    """``images(*shape)``: reproducible random images."""

    def images(*shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(7))

    return images


def pytest_generate_tests(metafunc):
    """``model_name`` runs over every network that comes with kdbench."""
    if "model_name" in metafunc.fixturenames:
        metafunc.parametrize("model_name", sorted(SPECS))
