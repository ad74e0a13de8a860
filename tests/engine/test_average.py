"""The moving average, against torch's own."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdbench.engine.average import Average


def walk(module: nn.Module, stream: torch.Generator) -> None:
    """A step somewhere."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream))
    module(torch.randn(5, 3, generator=stream))


def test_equals_torchs_average_in_weights_and_statistics():
    module, stream = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.Generator().manual_seed(0)
    reference = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    average = Average(module, 0.8)
    for _ in range(5):
        walk(module, stream)
        average.update()
        reference.update_parameters(module)
        found, expected = average.deployed_state(), reference.module.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected if key != "1.num_batches_tracked")
    assert not torch.equal(found["0.weight"], module[0].weight)
    assert found["1.num_batches_tracked"] == 5


def test_goes_on_from_its_state():
    module, stream = nn.Linear(3, 4), torch.Generator().manual_seed(0)
    whole = Average(module, 0.8)
    for _ in range(3):
        walk(module, stream)
        whole.update()
    again = Average(module, 0.8)
    again.load_state_dict(whole.state_dict())
    walk(module, stream)
    whole.update()
    again.update()
    assert torch.equal(whole.deployed_state()["weight"], again.deployed_state()["weight"])
