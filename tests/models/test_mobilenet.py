from __future__ import annotations

import torch
import torch.nn.functional as F


def _norm(x, state, name):
    return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)


def _block(x, state, name, stride):
    y = F.relu(_norm(F.conv2d(x, state[f"{name}.conv.0.weight"]), state, f"{name}.conv.1"))
    weight = state[f"{name}.conv.3.weight"]
    y = F.conv2d(y, weight, stride=stride, padding=1, groups=len(weight))
    y = F.relu(_norm(y, state, f"{name}.conv.4"))
    y = _norm(F.conv2d(y, state[f"{name}.conv.6.weight"]), state, f"{name}.conv.7")
    return x + y if x.shape == y.shape else y


def test_first_stage_equals_the_same_layers_written_out(build, images):
    torch.manual_seed(0)
    model = build("MobileNetV2").double().train()
    state = model.state_dict()
    x = images(4, 3, 32, 32).double()
    outputs = model(x, reads=("stem", "stage1", "stage2"))
    x = F.relu(_norm(F.conv2d(x, state["conv1.0.weight"], stride=2, padding=1), state, "conv1.1"))
    torch.testing.assert_close(outputs["stem"], x)
    # The first block narrows 16 channels to 8, so it has no shortcut.
    x = _block(x, state, "blocks.0.0", 1)
    x = _block(_block(x, state, "blocks.1.0", 1), state, "blocks.1.1", 1)
    torch.testing.assert_close(outputs["stage1"], x)
    x = _block(x, state, "blocks.2.0", 2)
    x = _block(_block(x, state, "blocks.2.1", 1), state, "blocks.2.2", 1)
    torch.testing.assert_close(outputs["stage2"], x)


def test_a_linear_bottleneck_is_its_own_pre_activation(build, images):
    model = build("MobileNetV2").eval()
    outputs = model(images(2, 3, 32, 32), reads=tuple(model.taps))
    for i in range(1, 5):
        assert torch.equal(outputs[f"stage{i}/pre"], outputs[f"stage{i}"])


def test_head_is_the_last_convolution_and_the_classifier(build):
    model = build("MobileNetV2")
    assert model.head == ("conv2", "fc")
    assert model.batch_norm_before("stage3/pre") is model.blocks[4][2].conv[7]
    assert model.batch_norm_before("stem") is None
