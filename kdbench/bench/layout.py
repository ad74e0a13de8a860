"""Part ``layout``: steps in channels_last and in contiguous memory, in each precision that the device has.

A run uses channels_last. Here, the networks, the optimiser's state and the images are converted back to contiguous
memory, and a step is that of the trainer after the teacher's pass. All combinations of a pair are measured in rounds,
one after the other, so that a change of the machine's speed meets all; a ratio belongs to one round.

An operation may return another layout than it is given, or a slice of channels. So the convolutions of both networks
are counted whose input is not in the layout that is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.bench.session import NO_TIME, Session
from kdbench.bench.timing import repeated
from kdbench.bench.world import World
from kdbench.data.feed import Minibatch
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.recipe import Recipe

PAIRS = (("resnet56", "resnet20"), ("vgg13", "vgg8"), ("resnet32x4", "ShuffleNetV2"), ("vgg13", "MobileNetV2"))
METHOD = "kd"
BATCH_SIZE = 64
PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32", "bf16")}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
STEPS = {"cpu": 1, "cuda": 20}
"""Of one measurement."""
ROUNDS = 3
"""At least; a pair for which there is no time for so many is left out."""
MOST = 20
REFERENCE = ("float32", "channels_last")


def measure(session: Session, pairs: Sequence[tuple[str, str]] = PAIRS, world: World | None = None) -> None:
    """Measure each pair."""
    world = world or session.world()
    for number, (teacher, student) in enumerate(pairs):
        settings = {"pair": f"{teacher}:{student}", "method": METHOD, "batch_size": BATCH_SIZE}
        if not session.budget.left:
            session.leave_out("steps", settings, NO_TIME)
            continue
        _measure(session, world, teacher, student, settings, share=1 / (len(pairs) - number))


def _measure(
    session: Session, world: World, teacher: str, student: str, settings: dict[str, Any], *, share: float
) -> None:
    over = session.budget.until(share)
    kind = session.device.type
    made = {
        (precision, layout): Stepping.make(session, world, teacher, student, precision, layout)
        for precision in PRECISIONS[kind]
        for layout in LAYOUTS
    }
    first = [stepping.seconds(1) for stepping in made.values()]
    # One step of each measurement does not count.
    if not session.budget.allows(sum(first) * (STEPS[kind] + 1) * ROUNDS / share):
        session.leave_out("steps", settings, NO_TIME)
        return
    seconds: dict[tuple[str, str], list[float]] = {combination: [] for combination in made}
    while len(seconds[REFERENCE]) < ROUNDS or (len(seconds[REFERENCE]) < MOST and not over()):
        order = list(made) if len(seconds[REFERENCE]) % 2 else list(reversed(made))
        for combination in order:
            seconds[combination].append(made[combination].seconds(STEPS[kind]))
    for (precision, layout), times in seconds.items():
        now = {**settings, "precision": precision, "layout": layout}
        other = made[precision, layout].in_another_layout()
        session.add("steps", {**now, "convolutions_in_another_layout": other}, [1 / t for t in times], "steps/s")
        if (precision, layout) != REFERENCE:
            ratios = [one / time for one, time in zip(seconds[REFERENCE], times, strict=True)]
            session.add("steps/s: ratio to channels_last float32", now, ratios, "ratio")


@dataclass
class Stepping:
    """A teacher and a learner whose tensors are in one layout, and a batch for them."""

    session: Session
    teacher: FrozenTeacher
    learner: Learner
    batch: Minibatch
    layout: torch.memory_format
    numbers: itertools.count[int]

    @classmethod
    def make(cls, session: Session, world: World, teacher: str, student: str, precision: str, layout: str) -> Stepping:
        """At the beginning of an epoch."""
        recipe = Recipe.model_validate({"epochs": 1, "batch_size": BATCH_SIZE, "precision": precision})
        memory = LAYOUTS[layout]
        frozen = world.teacher(teacher)
        learner = world.learner(f"{precision}-{layout}", student, frozen, METHOD, recipe)
        for network in (frozen.network, learner.student.network):
            network.to(memory_format=memory)
        for state in learner.trainer.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim == 4:
                    state[name] = value.contiguous(memory_format=memory)
        batch = world.batch(recipe)
        batch = replace(batch, images=batch.images.contiguous(memory_format=memory))
        learner.trainer.begin_epoch()
        return cls(session, frozen, learner, batch, memory, itertools.count())

    def step(self) -> None:
        """A pass of the teacher and a step of the student."""
        trainer = self.learner.trainer
        shown = self.teacher(self.batch.images, trainer.phase.teacher_reads, trainer.precision)
        trainer.step(next(self.numbers), self.batch, shown)

    def seconds(self, steps: int) -> float:
        """Of one of several steps, after one that does not count."""
        self.session.precision(self.learner.recipe.precision)

        def several() -> None:
            for _ in range(steps):
                self.step()

        self.step()
        return repeated(several, self.session.device, 0.0, least=1, warm_up=0)[0] / steps

    def in_another_layout(self) -> str:
        """``"2 of 9"``: of 9 convolutions for whose input the layouts differ, 2 do not get the wanted one."""
        found: list[bool] = []

        def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            images = arguments[0]
            # With one channel or one pixel, both layouts are the same.
            if not all(images.is_contiguous(memory_format=layout) for layout in LAYOUTS.values()):
                found.append(not images.is_contiguous(memory_format=self.layout))

        networks = self.teacher.network, self.learner.student.network
        convolutions = [m for network in networks for m in network.modules() if isinstance(m, nn.Conv2d)]
        hooks = [convolution.register_forward_pre_hook(note) for convolution in convolutions]
        try:
            self.step()
        finally:
            for hook in hooks:
                hook.remove()
        return f"{sum(found)} of {len(found)}"
