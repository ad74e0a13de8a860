"""The learning rate over a training."""

from __future__ import annotations

import math

from kdbench.recipe import Recipe


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate at ``progress`` epochs (a fraction within an epoch) of the main stage.

    >>> learning_rate(Recipe(epochs=240, lr=0.05, drops=(150, 180, 210)), 150.0)
    0.005
    """
    if progress < recipe.warmup_epochs:
        return recipe.lr * (progress + 1e-3) / recipe.warmup_epochs
    if recipe.schedule == "steps":
        drops = sum(progress >= drop for drop in recipe.drop_epochs)
        # Rounded: 0.05 * 0.1 ** 1 is 0.005000000000000001.
        return float(f"{recipe.lr * recipe.drop_factor**drops:.12g}")
    if recipe.schedule == "cosine":
        share = (progress - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1)
        return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * min(share, 1))) / 2
    return recipe.lr
