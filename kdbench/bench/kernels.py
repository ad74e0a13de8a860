"""Part ``kernels``: what a step consists of: kernels, memory, operations, and the share of the matrix peak.

A GPU that runs many short kernels waits for their launches, so that their number limits the steps per second of small
networks. On a CPU, operators are counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from kdbench.bench.pairs import SUITE
from kdbench.bench.profile import flops, launches, peak_bytes
from kdbench.bench.session import NO_TIME, Session
from kdbench.bench.timing import paired, repeated
from kdbench.bench.world import World
from kdbench.data.feed import Minibatch
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.opening import open_suite
from kdbench.recipe import Recipe
from kdbench.suite.load import pair_recipe
from kdbench.suite.schema import Pair, Suite

METHOD = "kd"
FOLDED = "pass of the teacher: folded / not folded"


def measure(session: Session, suite: Suite | None = None, world: World | None = None) -> None:
    """Measure teacher and student of each pair of suite cifar100."""
    suite = suite or open_suite(SUITE).suite
    world = world or session.world()
    precision = session.precision(suite.recipe.precision).name
    peak = session.matrix_rates(precision)
    taught: set[str] = set()
    trained: set[str] = set()
    for pair in suite.pairs:
        roles = (("teacher", pair.teacher, taught), ("student", pair.student, trained))
        wanted = [(role, name) for role, name, seen in roles if name not in seen]
        if not session.budget.left:
            for role, name in wanted:
                session.leave_out(f"step of the {role}", {"network": name}, NO_TIME)
        elif wanted:
            _measure(session, world, pair, pair_recipe(suite, pair.recipe), dict(wanted), peak, precision)
        taught.add(pair.teacher)
        trained.add(pair.student)


def _measure(
    session: Session,
    world: World,
    pair: Pair,
    recipe: Recipe,
    wanted: dict[str, str],
    peak: list[float],
    precision: str,
) -> None:
    batch: Minibatch = world.batch(recipe)
    teacher = world.teacher(pair.teacher)
    learner = world.learner("kernels", pair.student, teacher, METHOD, recipe)
    trainer = learner.trainer
    trainer.begin_epoch()
    numbers = itertools.count()
    shown = teacher(batch.images, trainer.phase.teacher_reads, trainer.precision)
    actions: dict[str, Callable[[], object]] = {
        "teacher": lambda: teacher(batch.images, trainer.phase.teacher_reads, trainer.precision),
        "student": lambda: trainer.step(next(numbers), batch, shown),
    }
    counted = "kernels" if session.on_gpu else "operators"
    for role, name in wanted.items():
        action = actions[role]
        settings = {"network": name, "batch_size": recipe.batch_size, "precision": precision}
        # The first steps choose algorithms and allocate the optimiser's state.
        times = repeated(action, session.device, 0.02 * session.budget.left, warm_up=2 if session.on_gpu else 1)
        operations = flops(action)
        session.add(f"step of the {role}", settings, [1000 * time for time in times], "ms")
        session.add(f"{counted} of the {role}", settings, [launches(action, session.device)], f"{counted}/step")
        session.add(f"peak memory of the {role}", settings, [peak_bytes(action, session.device) / 2**20], "MiB")
        session.add(f"operations of the {role}", settings, [operations / 1e9], "GFLOP/step")
        middle = sorted(peak)[len(peak) // 2]
        shares = [100 * operations / time / middle for time in times]
        session.add(f"share of the matrix peak of the {role}", settings, shares, "%")
        plain = world.teacher(name, fold=False) if role == "teacher" else teacher
        # Networks without normalisations that can be folded are the same.
        if len(list(plain.network.parameters())) > len(list(teacher.network.parameters())):
            _folded(session, action, plain, learner, batch, settings)


def _folded(
    session: Session,
    folded: Callable[[], object],
    plain: FrozenTeacher,
    learner: Learner,
    batch: Minibatch,
    settings: dict[str, Any],
) -> None:
    """The pass of a teacher without batch normalisations, against that of the same teacher with them, in pairs."""
    trainer = learner.trainer

    def unfolded() -> object:
        return plain(batch.images, trainer.phase.teacher_reads, trainer.precision)

    ratios = paired(folded, unfolded, session.device, 0.02 * session.budget.left)
    session.add(FOLDED, settings, ratios, "ratio")
