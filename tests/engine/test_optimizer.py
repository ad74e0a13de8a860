from __future__ import annotations

import torch
from torch import nn

from kdbench.engine.optimizer import begin_momentum, make_optimizer
from kdbench.recipe import Recipe


def test_adamw_spares_biases_and_norms_and_sgd_does_not():
    layers = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    parameters = list(layers.parameters())
    groups = make_optimizer(Recipe(epochs=1, optimizer="adamw", weight_decay=0.1), parameters, 0.1).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (3, 0.0)]
    (group,) = make_optimizer(Recipe(epochs=1, weight_decay=0.1), parameters, 0.1).param_groups
    assert (len(group["params"]), group["weight_decay"], group["momentum"]) == (4, 0.1, 0.9)


def test_a_parameter_that_joins_in_late_begins_with_no_momentum():
    """The fused SGD of torch fails there; the plain one is the reference."""
    found = [nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2)]
    expected = [nn.Parameter(p.detach().clone()) for p in found]
    fused = make_optimizer(Recipe(epochs=1, lr=0.1), found, 0.1)
    plain = torch.optim.SGD(expected, lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=False)
    for step in range(4):
        for parameters in (found, expected):
            parameters[0].grad = torch.tensor([0.5, -1.0]) * (step + 1)
            parameters[1].grad = torch.tensor([1.0, 3.0]) if step >= 2 else None
        begin_momentum(fused)
        fused.step()
        plain.step()
    torch.testing.assert_close(found, expected)
