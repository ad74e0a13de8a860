from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from kdbench.models.shufflenet import shuffle


def _norm(x, state, name):
    return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)


def test_shuffle_interleaves_the_groups():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_version_2_equals_torchvisions_with_the_small_stem(build, images):
    """torchvision's ShuffleNetV2 at width 1 with its stem replaced: the same layers in the same order."""
    torch.manual_seed(0)
    model = build("ShuffleNetV2").eval()
    reference = torchvision.models.shufflenet_v2_x1_0(num_classes=100)
    reference.conv1[0] = nn.Conv2d(3, 24, 1, bias=False)
    reference.maxpool = nn.Identity()
    reference.load_state_dict(dict(zip(reference.state_dict(), model.state_dict().values(), strict=True)))
    reference.eval()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x)["logits"], reference(x))


def test_version_2_pre_activations_are_unshuffled_and_half_rectified(build, images):
    torch.manual_seed(0)
    model = build("ShuffleNetV2").train()
    outputs = model(images(4, 3, 32, 32), reads=tuple(model.taps))
    for i in (1, 2, 3):
        before, after = outputs[f"stage{i}/pre"], outputs[f"stage{i}"]
        passed, convolved = before.chunk(2, dim=1)
        assert (passed >= 0).all()
        assert (convolved < 0).any()
        # torchvision's blocks leave channels 2j and 2j + 1 from place j of the first and the second half.
        assert torch.equal(after[:, 0::2], passed)
        assert torch.equal(after[:, 1::2], F.relu(convolved))


def test_version_1_equals_the_same_layers_written_out(build, images):
    """The first two blocks of ShuffleNet: one that halves the map, one that keeps it."""
    torch.manual_seed(0)
    model = build("ShuffleNetV1").double().train()
    state = model.state_dict()
    captured = []
    model.layer1[1].register_forward_hook(lambda module, inputs, output: captured.append(output))
    x = images(4, 3, 32, 32).double()
    model(x)

    def convolve(x, block, groups, stride):
        y = F.conv2d(x, state[f"{block}.conv1.weight"], groups=groups)
        y = F.relu(_norm(y, state, f"{block}.bn1"))
        y = torch.cat([y[:, start :: y.shape[1] // groups] for start in range(y.shape[1] // groups)], dim=1)
        weight = state[f"{block}.conv2.weight"]
        y = F.conv2d(y, weight, stride=stride, padding=1, groups=len(weight))
        y = F.relu(_norm(y, state, f"{block}.bn2"))
        return _norm(F.conv2d(y, state[f"{block}.conv3.weight"], groups=3), state, f"{block}.bn3")

    x = F.relu(_norm(F.conv2d(x, state["conv1.weight"]), state, "bn1"))
    y = convolve(x, "layer1.0", groups=1, stride=2)
    x = F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], dim=1))
    x = convolve(x, "layer1.1", groups=3, stride=1) + x
    torch.testing.assert_close(captured[0], x)


def test_heads_and_batch_norms(build):
    first, second = build("ShuffleNetV1"), build("ShuffleNetV2")
    assert first.head == ("fc",)
    assert second.head == ("conv2", "bn2", "fc")
    assert first.batch_norm_before("stage2/pre") is first.layer2[7].bn3
    # Half of what version 2 rectifies comes from no batch normalisation of this stage.
    assert second.batch_norm_before("stage2/pre") is None
