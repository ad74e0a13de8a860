from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdbench.errors import ModelError
from kdbench.models.base import signature


def _norm(x, state, name):
    return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)


def test_taps_equal_the_same_network_written_out(build, images):
    """ResNet-8 (one block a stage) in functional form, from its state dictionary."""
    torch.manual_seed(0)
    model = build("resnet8").double().train()
    state = model.state_dict()
    x = images(4, 3, 32, 32).double()
    outputs = model(x, reads=tuple(model.taps))

    expected = {}
    x = expected["stem"] = F.relu(_norm(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1"))
    for i, stride in ((1, 1), (2, 2), (3, 2)):
        block = f"layer{i}.0"
        y = F.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        y = F.relu(_norm(y, state, f"{block}.bn1"))
        y = _norm(F.conv2d(y, state[f"{block}.conv2.weight"], padding=1), state, f"{block}.bn2")
        if i > 1:
            shortcut = F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=stride)
            x = _norm(shortcut, state, f"{block}.downsample.1")
        expected[f"stage{i}/pre"] = x + y
        x = expected[f"stage{i}"] = F.relu(x + y)
    expected["embedding"] = F.adaptive_avg_pool2d(x, 1).flatten(1)
    expected["logits"] = F.linear(expected["embedding"], state["fc.weight"], state["fc.bias"])

    assert list(outputs) == list(expected)
    for tap, value in expected.items():
        torch.testing.assert_close(outputs[tap], value, rtol=1e-9, atol=1e-9)


def test_batch_norm_facts_are_those_of_the_last_block(build):
    model = build("resnet14")
    with torch.no_grad():
        model.layer2[-1].bn2.weight.fill_(3.0)
        model.layer2[-1].bn2.bias.fill_(-2.0)
    taps = signature(model, "resnet14", (3, 32, 32)).taps
    scale, shift = taps["stage2/pre"].batch_norm
    assert scale.eq(3).all()
    assert shift.eq(-2).all()
    assert scale.shape == shift.shape == (32,)
    assert taps["stage2"].batch_norm is None


def test_convolutions_start_with_he_et_als_variance(build):
    torch.manual_seed(0)
    weight = build("resnet32x4").layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


def test_depths_that_are_none_are_refused(build):
    with pytest.raises(ModelError, match=r"^resnet: depth must be 6n \+ 2 with n >= 1, got 18$"):
        build("resnet8", depth=18)
