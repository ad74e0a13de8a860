"""Folded batch normalisations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.engine.fold import folded
from kdbench.models.mobilenet import mobilenet_v2
from kdbench.models.resnet import resnet
from kdbench.models.wide_resnet import wide_resnet

SHAPE = (3, 16, 16)


def trained(network: nn.Module) -> nn.Module:
    """With statistics and weights as after a training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, -1.0, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network.eval().requires_grad_(False)


def normalisations(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    "network",
    [lambda: resnet(depth=8, classes=10, image_shape=SHAPE), lambda: mobilenet_v2(classes=10, image_shape=SHAPE)],
    ids=["resnet", "mobilenet"],
)
def test_all_taps_keep_their_values(network):
    plain = trained(network())
    made = folded(plain, SHAPE)
    assert normalisations(plain) > 0
    assert normalisations(made) == 0
    assert not any(p.requires_grad for p in made.parameters())
    images = torch.randn(4, *SHAPE)
    expected, found = (one(images, tuple(plain.taps)) for one in (plain, made))
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4 * expected[name].abs().max())


def test_a_pre_activation_network_stays_as_it_is():
    """What its convolutions return is also added to shortcuts."""
    plain = trained(wide_resnet(depth=10, width=1, classes=10, image_shape=SHAPE))
    assert folded(plain, SHAPE) is plain


class ReadsBoth(nn.Module):
    """Reads what the convolution returns, beside its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = {"logits": False}
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images, reads=()):
        x = self.conv(images)
        return {"logits": (self.bn(x) + x).mean((2, 3))}


class Twice(ReadsBoth):
    """Uses its normalisation twice."""

    def forward(self, images, reads=()):
        return {"logits": (self.bn(self.conv(images)) + self.bn(self.conv(images) * 2)).mean((2, 3))}


class InFloat32(ReadsBoth):
    """Computes in float32, whatever it is given."""

    def forward(self, images, reads=()):
        return {"logits": self.bn(self.conv(images.float())).mean((2, 3))}


@pytest.mark.parametrize("network", [ReadsBoth, Twice, InFloat32])
def test_nothing_is_folded_where_a_tap_would_change_or_cannot_be_verified(network):
    plain = trained(network())
    assert folded(plain, SHAPE) is plain
