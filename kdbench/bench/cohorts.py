"""Part ``cohorts``: a step of a lockstep cohort against the sum of its parts.

The parts are the pass of the teacher and the step of each student alone, without the lockstep. A cohort and its parts
are measured one after the other, in rounds, so that a change of the machine's speed meets both; which comes first
alternates. A ratio belongs to one round. The parts are always executed: the ratio of a cohort whose steps are replayed
contains what replays gain.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from kdbench.bench.session import NO_TIME, Session
from kdbench.bench.timing import repeated
from kdbench.bench.world import VARIANTS, Cohort, Variant, World
from kdbench.data.feed import Minibatch
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.recipe import Recipe

SIZES = (1, 2, 4, 8, 16)
PAIR = {"cpu": ("resnet20", "resnet8"), "cuda": ("resnet56", "resnet20")}
METHOD = "kd"
RECIPE = Recipe(epochs=1, batch_size=64, precision="tf32")
STEPS = {"cpu": 2, "cuda": 20}
"""Of one measurement."""
ROUNDS = 3
"""At least; a size for which there is no time for so many is left out."""


def measure(
    session: Session,
    variants: Sequence[Variant] = VARIANTS,
    sizes: Sequence[int] = SIZES,
    world: World | None = None,
) -> None:
    """Measure each size, with each way to run the engine."""
    kind = session.device.type
    teacher_name, student = PAIR[kind]
    recipe = RECIPE
    session.precision(recipe.precision)
    world = world or session.world()
    teacher = world.teacher(teacher_name)
    batch = world.batch(recipe)
    usable = [variant for variant in variants if kind in variant.devices]
    for number, variant in enumerate(usable):
        settings = {
            "pair": f"{teacher_name}:{student}",
            "method": METHOD,
            "batch_size": recipe.batch_size,
            "variant": variant.name,
        }
        over = session.budget.until(1 / (len(usable) - number))
        learners = [
            world.learner(f"{variant.name}-{index}", student, teacher, METHOD, recipe, variant=variant)
            for index in range(max(sizes))
        ]
        rounds = _Rounds(session, world, teacher, learners, batch, variant)
        fitting = rounds.fitting(sizes)
        for size in sizes:
            if size not in fitting:
                session.leave_out("cohort", {"learners": size, **settings}, NO_TIME)
        done = 0
        while fitting and (done < ROUNDS or not over()):
            rounds.measure(fitting)
            done += 1
        rounds.report(fitting, settings)


class _Rounds:
    """Times of cohorts and of their parts, by round."""

    def __init__(
        self,
        session: Session,
        world: World,
        teacher: FrozenTeacher,
        learners: Sequence[Learner],
        batch: Minibatch,
        variant: Variant,
    ) -> None:
        self.session = session
        self.teacher = teacher
        self.learners = learners
        self.batch = batch
        self.steps = STEPS[session.device.type]
        self._cohort = partial(Cohort, world, teacher=teacher, batches=lambda: itertools.repeat(batch), variant=variant)
        self._cohorts: dict[int, Cohort] = {}
        self.seconds: dict[int, list[float]] = {}
        self.parts: dict[int, list[float]] = {}
        self.passes: list[float] = []

    def fitting(self, sizes: Sequence[int]) -> list[int]:
        """The smallest of ``sizes`` for which there is time for :data:`ROUNDS` rounds, judged by one step."""
        teacher, student = self._teacher(), self._alone(self.learners[0], self._shown())
        found: list[int] = []
        for size in sorted(sizes):
            tried = [*found, size]
            # All cohorts, and their parts.
            step = 2 * (len(tried) * teacher + sum(tried) * student)
            if not self.session.budget.allows(step * (self.steps + 1) * ROUNDS):
                break
            found = tried
        return found

    def measure(self, sizes: Sequence[int]) -> None:
        """One round."""
        order = (self._whole, self._parts)
        for size in sizes:
            for action in order if len(self.parts.get(size, ())) % 2 else reversed(order):
                action(size)

    def _whole(self, size: int) -> None:
        if size not in self._cohorts:
            self._cohorts[size] = self._cohort(self.learners[:size])
        self.seconds.setdefault(size, []).append(self._cohorts[size].seconds_per_step(self.steps))

    def _parts(self, size: int) -> None:
        shown = self._shown()
        self.passes.append(self._teacher())
        alone = [self._alone(learner, shown) for learner in self.learners[:size]]
        self.parts.setdefault(size, []).append(self.passes[-1] + sum(alone))

    def report(self, sizes: Sequence[int], settings: Mapping[str, Any]) -> None:
        """Rows of all rounds."""
        for size in sizes:
            now = {"learners": size, **settings}
            if executed := self._cohorts[size].executed:
                now["executed"] = executed
            self.session.add("cohort", now, self.seconds[size], "s/step")
            self.session.add("sum of its parts", now, self.parts[size], "s/step")
            ratios = [whole / parts for whole, parts in zip(self.seconds[size], self.parts[size], strict=True)]
            self.session.add("cohort / sum of its parts", now, ratios, "ratio")
        if sizes:
            self.session.add("pass of the teacher", settings, self.passes, "s/step")

    def _shown(self) -> dict[str, Tensor]:
        trainer = self.learners[0].trainer
        return self.teacher(self.batch.images, trainer.phase.teacher_reads, trainer.precision)

    def _teacher(self) -> float:
        """Seconds of one of several passes, which are queued one after the other on a GPU."""

        def passes() -> None:
            for _ in range(self.steps):
                self._shown()

        return repeated(passes, self.session.device, 0.0, least=1)[0] / self.steps

    def _alone(self, learner: Learner, shown: Mapping[str, Tensor]) -> float:
        """Seconds of one of several steps of a student, with the teacher's outputs given."""
        trainer = learner.trainer
        numbers = itertools.count()

        def steps() -> None:
            for _ in range(self.steps):
                trainer.step(next(numbers), self.batch, shown)

        trainer.begin_epoch()
        trainer.step(next(numbers), self.batch, shown)
        return repeated(steps, self.session.device, 0.0, least=1, warm_up=0)[0] / self.steps
