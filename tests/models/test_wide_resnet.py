from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdbench.errors import ModelError
from kdbench.models.base import signature


def _norm(x, state, name):
    return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)


@pytest.mark.parametrize("name", ["wrn_16_1", "wrn_16_2"])
def test_taps_equal_the_same_network_written_out(build, images, name):
    """Two blocks a stage in functional form: f is the raw sum, g the next normalisation of it."""
    torch.manual_seed(0)
    model = build(name).double().train()
    state = model.state_dict()
    x = images(4, 3, 32, 32).double()
    outputs = model(x, reads=tuple(model.taps))

    expected = {}
    x = expected["stem"] = F.conv2d(x, state["conv1.weight"], padding=1)
    for i, stride in ((1, 1), (2, 2), (3, 2)):
        for index in (0, 1):
            block = f"block{i}.layer.{index}"
            before = _norm(x, state, f"{block}.bn1")
            if i > 1 and index == 0:
                expected[f"stage{i - 1}/pre"] = before
            y = F.conv2d(F.relu(before), state[f"{block}.conv1.weight"], stride=stride if index == 0 else 1, padding=1)
            y = F.relu(_norm(y, state, f"{block}.bn2"))
            y = F.conv2d(y, state[f"{block}.conv2.weight"], padding=1)
            shortcut = f"{block}.shortcut.weight"
            x = y + (F.conv2d(F.relu(before), state[shortcut], stride=stride) if shortcut in state else x)
        expected[f"stage{i}"] = x
    expected["stage3/pre"] = _norm(x, state, "bn1")
    expected["embedding"] = F.adaptive_avg_pool2d(F.relu(expected["stage3/pre"]), 1).flatten(1)
    expected["logits"] = F.linear(expected["embedding"], state["fc.weight"], state["fc.bias"])

    assert list(outputs) == list(expected)
    for tap, value in expected.items():
        torch.testing.assert_close(outputs[tap], value, rtol=1e-9, atol=1e-9)


def test_the_last_batch_norm_is_no_part_of_the_body_and_stands_before_the_last_stage(build):
    model = build("wrn_16_2")
    assert model.head == ("bn1", "fc")
    with torch.no_grad():
        model.bn1.bias.fill_(5.0)
        model.block2.layer[0].bn1.bias.fill_(4.0)
    taps = signature(model, "wrn_16_2", (3, 32, 32)).taps
    assert taps["stage3/pre"].batch_norm[1].eq(5).all()
    assert taps["stage1/pre"].batch_norm[1].eq(4).all()


def test_depths_that_are_none_are_refused(build):
    with pytest.raises(ModelError, match=r"^wide_resnet: depth must be 6n \+ 4 with n >= 1, got 18$"):
        build("wrn_16_1", depth=18)


def test_dropout_acts_in_training_only(build, images):
    torch.manual_seed(0)
    model = build("wrn_16_1", dropout=0.3)
    x = images(2, 3, 32, 32)
    model.train()
    assert not torch.equal(model(x)["logits"], model(x)["logits"])
    model.eval()
    assert torch.equal(model(x)["logits"], model(x)["logits"])
