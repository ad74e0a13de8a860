from __future__ import annotations

import torch
from kdbench_methods.connectors import BatchNorm2d
from torch import nn


def test_normalises_like_torch_where_there_is_a_variance():
    x = torch.randn(3, 4, 2, 2)
    ours, theirs = BatchNorm2d(4), nn.BatchNorm2d(4)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_one_value_a_channel_is_normalised_by_the_running_statistics():
    norm = BatchNorm2d(4)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    x = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(norm(x), (x - 1) / (4 + norm.eps) ** 0.5)
    assert (norm.running_mean == 1).all()
