"""The built-in learning-rate schedules, and the rate over a training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdbench.errors import PluginError
from kdbench.method import NonNegative, Positive
from kdbench.parts import Parts


def steps(
    progress: float,
    *,
    epochs: int,
    warmup_epochs: int,
    lr: float,
    drops: Sequence[float] = (),
    drop_factor: Positive = 0.1,
) -> float:
    """The learning rate is multiplied by drop_factor after each of drops."""
    # Rounded: 0.05 * 0.1 ** 1 is 0.005000000000000001.
    return float(f"{lr * drop_factor ** sum(progress >= drop for drop in drops):.12g}")


def cosine(progress: float, *, epochs: int, warmup_epochs: int, lr: float, min_lr: NonNegative = 0.0) -> float:
    """After the warm-up, the learning rate falls along half a cosine from lr to min_lr."""
    share = (progress - warmup_epochs) / max(epochs - warmup_epochs, 1)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * min(share, 1))) / 2


def constant(progress: float, *, epochs: int, warmup_epochs: int, lr: float) -> float:
    """The learning rate stays at lr after the warm-up."""
    return lr


def learning_rate(parts: Parts, progress: float) -> float:
    """The rate at ``progress`` epochs (a fraction within an epoch) of the main stage.

    Raises:
        PluginError: the schedule did not return a number of at least 0.
    """
    recipe = parts.recipe
    if progress < recipe.warmup_epochs:
        return recipe.lr * (progress + 1e-3) / recipe.warmup_epochs
    rate = parts.schedule(progress, epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs, lr=recipe.lr)
    if not (isinstance(rate, float | int) and 0 <= rate < math.inf):
        raise PluginError(f"schedule '{recipe.schedule.name}': must return a rate of at least 0, got {rate!r}")
    return float(rate)
