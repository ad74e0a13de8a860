from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.fitnet import FitNet, hint_loss
from torch import nn

from kdbench.method import Incompatible


def test_against_numpy():
    r, t = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    assert hint_loss(r, t).item() == pytest.approx(np.mean((r.numpy() - t.numpy()) ** 2), rel=1e-12)


def test_gradient():
    r, t = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: hint_loss(r, t), r.requires_grad_())


def test_the_regressor_also_stands_between_equal_shapes(signature, data, output, make_batch):
    method = FitNet()
    net = signature()
    method.setup(net, net, data)
    convolution, norm, relu = method.regressor
    assert convolution.kernel_size == (1, 1)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(relu, nn.ReLU)
    assert sum(p.numel() for p in method.parameters()) == 8 * 8 + 8 + 16
    s, t = output(net, method.reads), output(net, method.reads)
    value, weight = method(s, t, make_batch())["hint"]
    assert weight == 100.0
    torch.testing.assert_close(value, (method.regressor(s["stage2"]) - t["stage2"]).square().mean())


def test_reads_the_chosen_stage():
    assert FitNet().reads == {"logits", "stage2"} == FitNet.reads
    assert FitNet(stage=3).reads == {"logits", "stage3"}


def test_refuses_a_network_without_the_stage(signature, data):
    with pytest.raises(Incompatible, match=r"^fitnet needs a map of stage4; net has none$"):
        FitNet(stage=4).setup(signature(), signature(), data)
