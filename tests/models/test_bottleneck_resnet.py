from __future__ import annotations

import torch
import torchvision
from torch import nn


def test_equals_torchvisions_with_the_small_stem(build, images):
    """torchvision's ResNet-50 with its stem replaced is the same network under almost the same names."""
    torch.manual_seed(0)
    model = build("ResNet50").eval()
    reference = torchvision.models.resnet50(num_classes=100)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    reference.load_state_dict(
        {key.replace("shortcut", "downsample"): value for key, value in model.state_dict().items()}
    )
    reference.eval()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x)["logits"], reference(x))


def test_batch_norm_facts_are_those_of_the_last_block(build):
    with torch.device("meta"):
        model = build("ResNet50")
    assert model.batch_norm_before("stage3/pre") is model.layer3[5].bn3
    assert model.batch_norm_before("embedding") is None
