"""Part ``correctness``: trainings that must end with the same bits, trained in two ways and compared.

Steps that are executed and steps that are replayed from a recording (CUDA graphs on a GPU, a tape on a CPU); a
training that is resumed; a learner in a cohort. Networks are small and trainings a few epochs long, but they contain
what a long one does: first stages, the end of an epoch, a smaller last batch, a drop of the learning rate, checkpoints.
Algorithms are deterministic where libraries have such.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kdbench.bench.findings import EQUAL
from kdbench.bench.session import NO_TIME, Session
from kdbench.bench.trainings import Ended, Trainings
from kdbench.bench.world import World
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.engine.device import Precision
from kdbench.engine.learner import Learner
from kdbench.errors import Incompatible, KdbenchError, PluginError, TrialError, in_words
from kdbench.recipe import Recipe

TEACHER, STUDENT, TWO_HEADS = "resnet14", "resnet8", "deit_micro"
"""The last one is the student of methods that need a second head."""
SIDE = 16
"""Of the images, in pixels."""
EPOCHS = 3
BATCH_SIZE = 8
FULL = 3
"""Batches of an epoch that have the usual size: one step is executed, one is listed, one is recorded; then an epoch of
replays."""
LAST = 4
"""Images in the last batch."""
RECIPE = Recipe(epochs=EPOCHS, batch_size=BATCH_SIZE, lr=0.01, drops=(EPOCHS - 1,))
PRECISIONS = {"cpu": ("float32",), "cuda": ("tf32", "bf16")}
METHOD = "crd"
"""Of the comparisons that are made with one method: it has a memory and adapters, and draws random numbers."""
COMPANY = ("none", "kd", "at", "sp", "rkd", "pkt", "vid")
"""The other seven of a cohort of eight."""
DROP_PATH = 0.3
EXECUTED_IS_REPLAYED = "executed = replayed"
RESUMED_IS_WHOLE = "resumed = uninterrupted"
ALONE_IS_IN_COHORT = "alone = in a cohort of eight"
DROPS_ALONE = "stochastic depth alone = beside others that draw"
OTHERS_OF_ONE_THAT_FAILS = "alone = beside one that fails midway"
Difference = dict[str, Any]
"""What is said of trainings that differ; empty if all bits are equal."""
RAISES_AT = 6
"""The call of a loss that raises an error: one that is executed also where steps are replayed."""


class _NotCompared(KdbenchError):  # noqa: N818 - no error
    """There is nothing to compare; the message is the reason."""


def measure(session: Session, methods: Sequence[str] | None = None, world: World | None = None) -> None:
    """Compare. ``methods`` are those whose replays are compared, by default all that come with kdbench."""
    world = world or session.world(image_shape=(3, SIDE, SIDE), classes=10, n_train=FULL * BATCH_SIZE + LAST)
    # The method of the other comparisons first: these assume that its replays are right.
    names = sorted(_built_in(session) if methods is None else methods, key=lambda name: name != METHOD)
    try:
        for number, precision in enumerate(PRECISIONS[session.device.type]):
            recipe = RECIPE.model_copy(update={"precision": precision})
            trainings = Trainings(world, recipe, world.teacher(TEACHER), STUDENT)
            # The company of a GPU's second precision is the same.
            actions = [partial(_one, session, trainings, name) for name in names]
            if number == 0:
                actions.insert(1, partial(_company, session, trainings))
            for action in actions:
                action()
    finally:
        # The other parts are measured with the fastest algorithms, as a run has them by default.
        Precision.choose("auto", session.device).prepare()


def _one(session: Session, trainings: Trainings, method: str) -> None:
    settings = {"precision": trainings.recipe.precision, "method": method}
    _compare(session, EXECUTED_IS_REPLAYED, settings, lambda: _replayed(trainings, method))


def _company(session: Session, trainings: Trainings) -> None:
    """What else happens to a training must not change it, with executed and with replayed steps."""
    comparisons: dict[str, Callable[[Trainings, bool], Difference]] = {
        RESUMED_IS_WHOLE: _resumed,
        ALONE_IS_IN_COHORT: _in_a_cohort,
        DROPS_ALONE: _beside_drawing,
        OTHERS_OF_ONE_THAT_FAILS: _beside_failing,
    }
    for name, compare in comparisons.items():
        for steps in ("executed", "replayed"):
            settings = {"precision": trainings.recipe.precision, "steps": steps, "method": METHOD}
            _compare(
                session,
                name,
                settings,
                lambda: (compare(trainings, steps == "replayed"), {}),  # noqa: B023
            )


def _compare(
    session: Session, name: str, settings: dict[str, Any], compare: Callable[[], tuple[Difference, dict[str, Any]]]
) -> None:
    """Make a comparison, and keep its row."""
    if not session.budget.left:
        session.leave_out(name, settings, NO_TIME)
        return
    try:
        difference, more = compare()
    except (_NotCompared, Incompatible, PluginError) as reason:
        session.leave_out(name, settings, str(reason))
    except Exception as error:  # noqa: BLE001 - the other comparisons are made all the same
        session.leave_out(name, settings, in_words(error), failed=True)
    else:
        session.add(name, {**settings, **more, **difference}, [0.0 if difference else 1.0], EQUAL)


def _replayed(trainings: Trainings, method: str) -> tuple[Difference, dict[str, Any]]:
    """Executed steps and replayed ones. Says how many steps were replayed, the teacher's passes not counted."""
    student, settings = _fitting(trainings, method)

    def end(*, replayed: bool) -> Ended:
        learner = trainings.learner("a", method, student=student, settings=settings)
        return trainings.run(learner, replayed=replayed, traced=True)

    executed, replayed = end(replayed=False), end(replayed=True)
    reason, replays = replayed.executed["a"], replayed.replays[1:]
    if reason is not None and not replays[-1]:
        raise _NotCompared(f"its steps are executed: {reason}")
    more = {"student": student, "replays": sum(replays)}
    difference = executed.states["a"].difference(replayed.states["a"])
    if reason is not None:
        # The engine has found it, and has repeated the epoch.
        difference = {"reason": reason, **difference}
    if difference and executed.states["a"].difference(end(replayed=False).states["a"]):
        difference["executed_again"] = "also unequal: the operations are not deterministic"
    return difference, more


def _fitting(trainings: Trainings, method: str) -> tuple[str, dict[str, Any]]:
    """A student that the method can read, and settings with which its first stages are short.

    Raises :class:`~kdbench.errors.Incompatible` if there is none, :class:`~kdbench.errors.PluginError` if a setting
    has no default.
    """
    loaded = trainings.world.registry.method(method).load()
    names = inspect.signature(loaded.__init__).parameters
    settings: dict[str, Any] = {name: EPOCHS for name in names if name.endswith("_epochs")}
    try:
        trainings.learner("a", method, settings=settings)
    except Incompatible:
        trainings.learner("a", method, student=TWO_HEADS, settings=settings)
        return TWO_HEADS, settings
    return trainings.student, settings


def _resumed(trainings: Trainings, replayed: bool) -> Difference:
    """Stopped after each epoch but the last, and resumed from the checkpoint."""
    whole = trainings.alone(METHOD, replayed=replayed)
    for epochs in range(1, EPOCHS):
        count = itertools.count(1)
        first = trainings.learner("a", METHOD)
        trainings.run(first, replayed=replayed, stop=lambda: next(count) >= epochs)  # noqa: B023
        again = trainings.learner("a", METHOD, folder=first.folder)
        if not again.resume():
            raise TrialError(f"the checkpoint of epoch {epochs} cannot be read")
        difference = whole.difference(trainings.run(again, replayed=replayed).states["a"])
        if difference:
            return {"after_epoch": epochs, **difference}
    return {}


def _in_a_cohort(trainings: Trainings, replayed: bool) -> Difference:
    others = [trainings.learner(name, name) for name in COMPANY]
    return _beside(trainings, others, replayed=replayed)


def _beside_drawing(trainings: Trainings, replayed: bool) -> Difference:
    """Transformers with stochastic depth, which is drawn from the global generator."""
    recipe = trainings.recipe.model_copy(update={"drop_path": DROP_PATH})
    dropping = replace(trainings, recipe=recipe, student=TWO_HEADS)
    return _beside(dropping, [dropping.learner(f"{METHOD}-too", METHOD)], replayed=replayed)


def _beside_failing(trainings: Trainings, replayed: bool) -> Difference:
    failing = trainings.learner("failing", "kd")
    _fail_midway(failing)
    return _beside(trainings, [failing], replayed=replayed, fails="failing")


def _beside(trainings: Trainings, others: Sequence[Learner], *, replayed: bool, fails: str | None = None) -> Difference:
    """A learner alone, and after ``others`` in one cohort."""
    alone = trainings.alone(METHOD, replayed=replayed)
    together = trainings.run(*others, trainings.learner("a", METHOD), replayed=replayed, may_fail=fails is not None)
    failed = list(together.failures)
    if failed != ([fails] if fails is not None else []):
        raise TrialError(f"these learners failed: {', '.join(failed) or 'none'}; expected: {fails}")
    return alone.difference(together.states["a"])


def _fail_midway(learner: Learner) -> None:
    """Its loss raises an error at call :data:`RAISES_AT`."""
    method = learner.student.method
    calls, forward = itertools.count(1), method.forward

    def failing(*arguments: Any) -> Any:
        if next(calls) == RAISES_AT:
            raise ValueError("planted by kdbench bench")
        return forward(*arguments)

    method.forward = failing  # type: ignore[assignment, method-assign]


def _built_in(session: Session) -> Iterator[str]:
    """The methods that come with kdbench; variants are the same classes with other settings."""
    for offer in session.registry.methods:
        if offer.provider.distribution == FIRST_PARTY and not offer.spec.presets:
            yield offer.spec.name
