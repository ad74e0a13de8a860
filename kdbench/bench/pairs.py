"""Part ``pairs``: steps per second of the pairs of suite cifar100, on random images, with the suite's recipe.

A step is that of a whole cohort, with augmentation, the pass of the teacher, and the main stage of every method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdbench.bench.session import NO_TIME, Session
from kdbench.bench.world import VARIANTS, Cohort, Variant, World
from kdbench.data.feed import Minibatch
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.errors import Incompatible, in_words
from kdbench.opening import open_suite
from kdbench.recipe import Recipe
from kdbench.suite.load import pair_recipe
from kdbench.suite.schema import MethodTable, Pair, Suite

SUITE = "cifar100"
FEW = ("none", "kd")
STEPS = {"cpu": 1, "cuda": 20}
"""Of one measurement."""
MEASUREMENTS = 10
"""At most."""


@dataclass(frozen=True)
class _Entry:
    """A pair with some of the suite's methods."""

    pair: Pair
    methods: Sequence[MethodTable]

    @property
    def settings(self) -> dict[str, Any]:
        return {"pair": self.pair.name, "methods": [method.shown for method in self.methods]}


def measure(
    session: Session, variants: Sequence[Variant] = VARIANTS, suite: Suite | None = None, world: World | None = None
) -> None:
    """Measure every pair with :data:`FEW`, then every pair with all methods."""
    suite = suite or open_suite(SUITE).suite
    world = world or session.world()
    usable = [variant for variant in variants if session.device.type in variant.devices]
    few = [method for method in suite.methods if method.name in FEW]
    entries = [_Entry(pair, methods) for methods in (few, suite.methods) for pair in suite.pairs]
    for number, entry in enumerate(entries):
        if not session.budget.left:
            session.leave_out("steps", entry.settings, NO_TIME)
            continue
        over = session.budget.until(1 / (len(entries) - number))
        try:
            _measure(session, world, entry, pair_recipe(suite, entry.pair.recipe), usable, over)
        except Exception as error:  # noqa: BLE001 - the other pairs are measured all the same
            session.leave_out("steps", entry.settings, in_words(error), failed=True)
        if session.on_gpu:
            torch.cuda.empty_cache()


def _measure(
    session: Session, world: World, entry: _Entry, recipe: Recipe, variants: Sequence[Variant], over: Any
) -> None:
    teacher = world.teacher(entry.pair.teacher)
    feed = world.feed(recipe)

    def batches() -> Iterator[Minibatch]:
        return feed.epoch("main", 0)

    cohorts: dict[str, Cohort] = {}
    for variant in variants:
        learners = list(_learners(session, world, entry, teacher, recipe, variant))
        cohorts[variant.name] = Cohort(world, learners, teacher, batches, variant)
    seconds: dict[str, list[float]] = {name: [] for name in cohorts}
    for _ in range(MEASUREMENTS):
        for name, cohort in list(cohorts.items()):
            try:
                seconds[name].append(cohort.seconds_per_step(STEPS[session.device.type]))
            except Exception as error:  # noqa: BLE001 - the other variants are measured all the same
                session.leave_out("steps", {**entry.settings, "variant": name}, in_words(error), failed=True)
                del cohorts[name]
        if over():
            break
    for name, cohort in cohorts.items():
        settings = {**entry.settings, "batch_size": recipe.batch_size, "variant": name}
        executed = {"executed": cohort.executed} if cohort.executed else {}
        session.add("steps", {**settings, **executed}, [1 / time for time in seconds[name]], "steps/s")


def _learners(
    session: Session, world: World, entry: _Entry, teacher: FrozenTeacher, recipe: Recipe, variant: Variant
) -> Iterator[Learner]:
    for method in entry.methods:
        given = {**method.settings, **entry.pair.methods.get(method.shown, {})}
        try:
            yield world.learner(
                f"{variant.name}-{method.shown}",
                entry.pair.student,
                teacher,
                method.name,
                recipe,
                settings=given,
                variant=variant,
            )
        except Incompatible as reason:
            session.leave_out("steps", {"pair": entry.pair.name, "method": method.shown}, str(reason))
