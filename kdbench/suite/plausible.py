"""Values that are valid, but not plausible for the suite's images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kdbench.recipe import Recipe
from kdbench.suite.load import Problem, pair_recipe
from kdbench.suite.schema import Suite
from kdbench.suite.tables import Location
from kdbench.words import plural


def size_problems(
    suite: Suite, image_shape: tuple[int, int, int], lengths: Callable[[Recipe], Iterable[Mapping[str, int]]]
) -> Iterator[Problem]:
    """Lengths of augmentations above the side of the images (channels, height, width).

    ``lengths`` gives the settings of a recipe's augmentations that are lengths in pixels, one mapping for each.
    """
    side = min(image_shape[1:])
    for location, recipe, given in _recipes(suite):
        for index, step in enumerate(lengths(recipe) if "augmentation" in given else ()):
            for key, length in step.items():
                if length > side:
                    what = f"must be at most {side}, the side of the images in pixels, got {length}"
                    yield (*location, "augmentation", index, key), what


def remarks(suite: Suite, n_train: int) -> Iterator[Problem]:
    """Implausible values of a recipe that can be trained. ``n_train``: the images that are trained on."""
    for location, recipe, given in _recipes(suite):
        if recipe.batch_size > n_train and "batch_size" in given:
            what = f"{recipe.batch_size} is above the number of training images, {n_train}: an epoch is one step"
            yield (*location, "batch_size"), what
        if recipe.warmup_epochs >= recipe.epochs and given.keys() & {"epochs", "warmup_epochs"}:
            lasts = plural(recipe.warmup_epochs, "epoch")
            what = f"the warm-up ({lasts}) is not shorter than the training ({recipe.epochs})"
            yield (*location, "warmup_epochs"), f"{what}: the learning rate rises to the end"


def _recipes(suite: Suite) -> Iterator[tuple[Location, Recipe, Mapping[str, Any]]]:
    """Every recipe of a suite, where it is written, and the keys that are written there."""
    yield ("recipe",), suite.recipe, suite.recipe.model_dump()
    for index, pair in enumerate(suite.pairs):
        yield ("pairs", index, "recipe"), pair_recipe(suite, pair.recipe), pair.recipe
    for name, teacher in suite.teachers.items():
        if teacher.weights is None:
            yield ("teachers", name, "recipe"), pair_recipe(suite, teacher.recipe), teacher.recipe
