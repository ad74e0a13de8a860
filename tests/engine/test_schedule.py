from __future__ import annotations

import pytest

from kdbench.engine.schedule import learning_rate
from kdbench.parts import Parts
from kdbench.recipe import Recipe


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.05), (149.99, 0.05), (150, 0.005), (180, 5e-4), (209.5, 5e-4), (210, 5e-5), (239, 5e-5)],
)
def test_the_crd_recipe_drops_after_its_epochs(epoch, expected):
    recipe = Recipe(epochs=240, lr=0.05, schedule="steps", drops=(150, 180, 210))
    assert learning_rate(Parts.of(recipe), epoch) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 1.0), (2.5, 0.8535533905932737), (5, 0.55), (10, 0.1)])
def test_cosine_ends_at_its_minimum(epoch, expected):
    recipe = Recipe(epochs=10, lr=1.0, min_lr=0.1 if epoch != 2.5 else 0.0, schedule="cosine")
    assert learning_rate(Parts.of(recipe), epoch) == pytest.approx(expected)


def test_warm_up_rises_to_the_base_rate_and_then_follows_the_schedule():
    recipe = Recipe(epochs=10, lr=1.0, schedule="cosine", warmup_epochs=2)
    rates = [learning_rate(Parts.of(recipe), step / 10) for step in range(20)]
    assert rates == sorted(rates)
    assert 0 < rates[0] < 0.01
    assert learning_rate(Parts.of(recipe), 2.0) == pytest.approx(1.0)
    assert learning_rate(Parts.of(recipe), 6.0) == pytest.approx(0.5)


def test_constant_is_constant():
    recipe = Recipe(epochs=10, lr=0.3, schedule="constant")
    assert {learning_rate(Parts.of(recipe), e) for e in range(10)} == {0.3}
