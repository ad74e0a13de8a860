"""What every network of the zoo owes its readers."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.errors import ModelError
from kdbench.models.base import signature

HEADS = {"deit_micro": ("dist_logits",)}


def test_offers_import_no_torch():
    code = "import sys, kdbench.models.builtin as b; b.kdbench_models(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_offer_has_reference_and_summary(model_name):
    from kdbench.models.builtin import kdbench_models

    spec = next(spec for spec in kdbench_models() if spec.name == model_name)
    assert "https://" in spec.reference
    assert spec.summary
    module, function = spec.target.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_signature_on_the_meta_device(build, model_name):
    with torch.device("meta"):
        model = build(model_name)
    facts = signature(model, model_name, (3, 32, 32))
    assert facts.classes == 100
    assert facts.model == model_name
    assert facts.stages == [f"stage{i}" for i in range(1, len(facts.stages) + 1)]
    assert len(facts.stages) in {3, 4}
    assert list(facts.taps) == list(model.taps)
    assert facts.taps["logits"].shape == (100,)
    assert facts.classifier_weight.shape == (100, *facts.taps["embedding"].shape)
    assert facts.classifier_weight.device.type == "meta"


def test_taps_have_the_declared_sign_and_the_signed_ones_use_it(build, images, model_name):
    torch.manual_seed(0)
    model = build(model_name).train()
    outputs = model(images(4, 3, 32, 32), reads=tuple(model.taps))
    assert list(outputs) == list(model.taps)
    for tap, nonnegative in model.taps.items():
        assert bool((outputs[tap] < 0).any()) != nonnegative, tap
        assert bool((outputs[tap] > 0).any()), tap


def test_every_parameter_gets_a_gradient(build, images, model_name):
    torch.manual_seed(0)
    model = build(model_name).train()
    reads = HEADS.get(model_name, ())
    outputs = model(images(4, 3, 32, 32), reads=reads)
    sum(outputs[name].square().mean() for name in ("logits", *reads)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A convolution's bias before a batch normalisation changes nothing, so its gradient is all rounding.
        assert parameter.grad.abs().sum() > 0, name


def test_gives_only_what_is_read(build, images, model_name):
    model = build(model_name).eval()
    assert list(model(images(1, 3, 32, 32))) == ["logits"]
    assert list(model(images(1, 3, 32, 32), reads=("stage2", "logits"))) == ["stage2", "logits"]


def test_reading_taps_changes_neither_logits_nor_statistics(build, images, model_name):
    outputs, states = [], []
    for everything in (False, True):
        torch.manual_seed(0)
        model = build(model_name).train()
        torch.manual_seed(1)
        outputs.append(model(images(4, 3, 32, 32), reads=tuple(model.taps) if everything else ())["logits"])
        states.append(model.state_dict())
    assert torch.equal(*outputs)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_tap_is_not_changed_by_later_layers(build, images, model_name):
    torch.manual_seed(0)
    model = build(model_name).eval()
    for module in model.modules():
        assert not getattr(module, "inplace", False)
    outputs = model(images(2, 3, 32, 32), reads=tuple(model.taps))
    for tap in model.taps:
        if not tap.endswith("/pre") or model.family in {"wrn", "mobilenet", "shufflenet"}:
            continue
        assert torch.equal(F.relu(outputs[tap]), outputs[tap.removesuffix("/pre")]), tap


def test_logits_are_the_classifier_of_the_embedding(build, images, model_name):
    model = build(model_name).eval()
    outputs = model(images(2, 3, 32, 32), reads=("embedding",))
    classifier = model.get_submodule(model.classifier)
    assert isinstance(classifier, nn.Linear)
    assert torch.equal(classifier(outputs["embedding"]), outputs["logits"])


def test_head_names_submodules_and_leaves_a_body(build, model_name):
    model = build(model_name)
    assert any(model.classifier.startswith(name) for name in model.head)
    head = {id(p) for name in model.head for p in model.get_submodule(name).parameters()}
    assert head
    assert any(id(p) not in head for p in model.parameters())


def test_an_unknown_tap_is_an_error_that_lists_the_known_ones(build, images):
    with pytest.raises(ModelError, match=r"^ResNet has no tap stage9; it has stem, stage1/pre, stage1, "):
        build("resnet8")(images(1, 3, 32, 32), reads=("stage9",))


@pytest.mark.parametrize("size", [8, 28])
def test_small_images_of_one_channel(build, images, model_name, size):
    model = build(model_name, classes=10, image_shape=(1, size, size)).train()
    outputs = model(images(4, 1, size, size), reads=tuple(model.taps))
    assert outputs["logits"].shape == (4, 10)
    assert all(torch.isfinite(value).all() for value in outputs.values())


def test_images_too_small_are_refused(build, model_name):
    with pytest.raises(ModelError, match=r"images must be at least 8 pixels high and wide, got 3x4x4$"):
        build(model_name, image_shape=(3, 4, 4))
