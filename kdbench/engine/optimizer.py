"""The built-in optimisers, and the parameter groups that any optimiser gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import nn

from kdbench.method import Positive
from kdbench.parts import Parts

Groups = Sequence[dict[str, Any]]
"""torch's parameter groups, each with its ``weight_decay``."""


def sgd(
    groups: Groups,
    *,
    lr: float,
    weight_decay: float,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True)


def adamw(
    groups: Groups,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Positive = 1e-8,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov 2019, arXiv:1711.05101)."""
    # Torch refuses to record a step of Adam without ``capturable``, which does not change the fused step.
    return torch.optim.AdamW(
        groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True, capturable=True
    )


def timm_optimizer(
    groups: Groups,
    *,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: Annotated[float, Ge(0), Lt(1)] | None = None,
    betas: tuple[float, float] | None = None,
    eps: Positive | None = None,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser of timm, such as ``lamb``, ``lars``, ``lion`` or ``muon``; ``options`` are its other arguments."""
    from timm.optim import create_optimizer_v2

    given = {"momentum": momentum, "betas": betas, "eps": eps}
    known = {key: value for key, value in given.items() if value is not None}
    made: torch.optim.Optimizer = create_optimizer_v2(
        list(groups), opt=name, lr=lr, weight_decay=weight_decay, **known, **(options or {})
    )
    return made


def make_optimizer(
    parts: Parts, parameters: Mapping[str, nn.Parameter], lr: float, no_weight_decay: Collection[str] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimiser for ``parameters`` by name.

    Biases, norms and those named in ``no_weight_decay`` do not decay, as in DeiT and timm
    (``timm.optim.param_groups_weight_decay``), unless the optimiser decays all of them.
    """
    decay = parts.recipe.weight_decay
    exempt = {
        name
        for name, p in parameters.items()
        if not parts.optimizer.spec.decays_all and (p.ndim <= 1 or name.endswith(".bias") or name in no_weight_decay)
    }
    groups = [
        {"params": [p for name, p in parameters.items() if name not in exempt], "weight_decay": decay},
        {"params": [p for name, p in parameters.items() if name in exempt], "weight_decay": 0.0},
    ]
    made = parts.optimizer([group for group in groups if group["params"]], lr=lr, weight_decay=decay)
    optimizer: torch.optim.Optimizer = made
    return with_momentum(optimizer)


def with_momentum(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """``optimizer``; if it is an SGD with momentum, with momentum buffers of zeros for all parameters.

    The first step is then the same operation as the others, and adds a zero. Without them, the fused SGD of torch
    fails where some parameters get their first gradient later than others. With dampening, the first step is another
    operation, and stays one.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group.get("momentum") and not group.get("dampening") else ():
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
    return optimizer
