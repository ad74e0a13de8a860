"""The optimisers of recipes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from kdbench.recipe import Recipe


def make_optimizer(
    recipe: Recipe, parameters: Mapping[str, nn.Parameter], lr: float, no_weight_decay: Collection[str] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimiser for ``parameters`` by name.

    Under SGD all of them decay. Under AdamW biases, norms and those named in ``no_weight_decay`` do not, as in DeiT
    and timm (``timm.optim.param_groups_weight_decay``).
    """
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters.values(),
            lr=lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    exempt = {
        name for name, p in parameters.items() if p.ndim <= 1 or name.endswith(".bias") or name in no_weight_decay
    }
    groups = [
        {"params": [p for name, p in parameters.items() if name not in exempt], "weight_decay": recipe.weight_decay},
        {"params": [p for name, p in parameters.items() if name in exempt], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that get their first gradient late the zero momentum that they begin with.

    The fused SGD of torch fails where some have momentum and others have none, as when a term joins in later.
    """
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        trained = [p for p in group["params"] if p.grad is not None]
        late = [p for p in trained if optimizer.state[p].get("momentum_buffer") is None]
        for parameter in late if len(late) < len(trained) else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
