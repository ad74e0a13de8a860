from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.bench.profile import flops, launches, most_held, peak_bytes

CPU = torch.device("cpu")


def test_peak_memory_of_known_tensors():
    kept = torch.ones(250_000)

    def action():
        a = torch.empty(250_000)  # 1 MB
        b = torch.empty(750_000)  # 3 MB
        del a
        torch.empty(500_000)  # 2 MB, after the first was released
        del b

    assert peak_bytes(action, CPU) == 5_000_000
    assert peak_bytes(lambda: kept.add_(1), CPU) < 100


def test_the_largest_sum_of_changes():
    def event(ts, size, device=0):
        return {"name": "[memory]", "ts": ts, "args": {"Bytes": size, "Device Type": device}}

    # Not in order; another device, and another event.
    events = [event("3.5", -10), event("1.25", 10), event("2", 5), event("2.5", 99, 1), {"name": "aten::add", "ts": 1}]
    assert most_held(events) == 15


def test_operators_are_counted():
    a = torch.ones(3)
    assert launches(lambda: a + a, CPU) == 1
    assert launches(lambda: [a + a for _ in range(4)], CPU) == 4


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_operations_of_a_convolution(groups):
    """2 operations for each weight and output; the backward pass has two gradients of the same cost."""
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups, bias=False)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    forward = 2 * (2 * 16 * 5 * 5) * (8 // groups * 3 * 3)
    assert flops(lambda: layer(x)) == forward
    assert flops(lambda: layer(x).sum().backward()) == 3 * forward
    # No gradient of the images, as in the first layer.
    assert flops(lambda: layer(x.detach()).sum().backward()) == 2 * forward


def test_operations_of_a_transposed_convolution():
    layer = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, bias=False)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    forward = 2 * (2 * 8 * 5 * 5) * (4 * 4 * 4)
    assert flops(lambda: layer(x)) == forward
    assert flops(lambda: layer(x).sum().backward()) == 3 * forward


def test_operations_of_a_linear_layer():
    layer = nn.Linear(10, 20, bias=False)
    assert flops(lambda: layer(torch.ones(3, 10))) == 2 * 3 * 10 * 20
