"""A recipe with other learning rates."""

from __future__ import annotations

from kdbench.recipe import Part, Recipe


def test_a_factor_scales_all_rates_and_one_changes_nothing() -> None:
    recipe = Recipe(epochs=3, lr=0.3, min_lr=0.003, schedule=Part(name="cosine"))
    assert recipe.scaled(1.0) is recipe
    scaled = recipe.scaled(0.5)
    assert (scaled.lr, scaled.min_lr) == (0.15, 0.0015)
    assert scaled.model_copy(update={"lr": 0.3, "min_lr": 0.003}) == recipe
