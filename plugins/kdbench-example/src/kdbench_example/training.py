"""An optimiser and an augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.data.augment import Draws
from kdbench.method import Fraction


class Signum(torch.optim.Optimizer):
    """Steps of size ``lr`` in the direction of the sign of the momentum."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; ``closure`` is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["beta"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(state["momentum"].sign(), alpha=-group["lr"])


def signum(
    groups: Sequence[dict[str, Any]], *, lr: float, weight_decay: float, beta: Fraction = 0.9
) -> torch.optim.Optimizer:
    """The sign of the momentum, with decoupled weight decay."""
    return Signum(groups, {"lr": lr, "weight_decay": weight_decay, "beta": beta})


def brightness(images: Tensor, draws: Draws, *, most: Fraction = 0.2) -> Tensor:
    """Scale each image by a random factor between 1 - ``most`` and 1."""
    factor = 1 - most * torch.rand(len(images), 1, 1, 1, generator=draws.device, device=images.device)
    return (images * factor).to(images.dtype)
