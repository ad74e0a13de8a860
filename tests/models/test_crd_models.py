"""Parameter counts and tap shapes of the CRD study's networks."""

from __future__ import annotations

import re

import pytest
import torch

from kdbench.models.base import signature
from kdbench.models.builtin import kdbench_models

CANONICAL = {"ShuffleV1": "ShuffleNetV1", "ShuffleV2": "ShuffleNetV2"}


def _published_taps(facts):
    return [tap for tap in facts.taps if tap in {"stem", "embedding"} or re.fullmatch(r"stage\d", tap)]


def _names():
    return [spec.name for spec in kdbench_models() if spec.name != "deit_micro"]


@pytest.mark.parametrize("name", _names())
def test_parameters_and_shapes_at_32_pixels(build, published, name):
    row = {CANONICAL.get(model, model): facts for model, facts in published.items()}[name]
    with torch.device("meta"):
        model = build(name)
    facts = signature(model, name, (3, 32, 32))
    assert sum(parameter.numel() for parameter in model.parameters()) == row[0]
    assert [facts.taps[tap].shape for tap in _published_taps(facts)] == row[1]


@pytest.mark.parametrize("name", _names())
def test_shapes_at_64_pixels(build, name):
    with torch.device("meta"):
        small, large = build(name), build(name, image_shape=(3, 64, 64))
    at_32 = signature(small, name, (3, 32, 32)).taps
    at_64 = signature(large, name, (3, 64, 64)).taps
    for tap, facts in at_32.items():
        channels, *size = facts.shape
        factor = 1 if name.startswith("vgg") and tap.startswith("stage4") else 2
        assert at_64[tap].shape == (channels, *(factor * side for side in size)), tap
        if tap.endswith("/pre"):
            assert facts.shape == at_32[tap.removesuffix("/pre")].shape
