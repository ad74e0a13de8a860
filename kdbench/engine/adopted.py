"""A student whose training is known already: its stored weights, measured with another teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from kdbench.data.feed import Feed
from kdbench.engine.added import AddedMetrics
from kdbench.engine.evaluation import Evaluation
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.guard import Guard
from kdbench.engine.learner import Learner
from kdbench.engine.lessons import Lessons
from kdbench.results import EpochRecord


def load_weights(learner: Learner, path: Path) -> None:
    """Give a learner the weights that another one wrote (:meth:`Learner.write_student`).

    Raises ``RuntimeError`` if they are of another network, and what safetensors raises for a damaged file.
    """
    weights = load_file(path)
    for name, part in learner.student.parts.items():
        prefix = f"method.{name}."
        own = [key for key in weights if key.startswith(prefix)]
        part.load_state_dict({key.removeprefix(prefix): weights.pop(key) for key in own})
    learner.student.network.load_state_dict(weights)
    # Averaged weights were stored as such.
    learner.student.average = None


def measured(
    learner: Learner,
    record: EpochRecord,
    feed: Feed,
    teacher: FrozenTeacher,
    added: AddedMetrics,
    *,
    deterministic: bool,
    stop: Callable[[], bool],
    proceed: Callable[[], None],
) -> EpochRecord | None:
    """``record`` with the metrics of the learner's weights and this teacher; None if a plugin failed.

    They are measured as at the end of that epoch, so that equal weights give equal values. ``stop`` is whether a stop
    was requested; ``proceed`` is called before each batch, and may raise to end the run.
    """
    learner.trainer.precision.prepare(deterministic=deterministic)
    guard = Guard([learner], teacher, failed=lambda *_: None, stop=stop, watchful=False, modules={*added.modules})
    lessons = Lessons(teacher, feed, guard, learner)
    records = {learner.id: record}
    Evaluation(feed, guard, lessons, proceed, added).complete([learner], records)
    return records[learner.id] if learner.active else None
