"""Lockstep: the students of a cohort advance batch by batch together.

Each batch is augmented once and passes the teacher once. A learner draws on nothing that another one does,
so that it ends with the same bits alone as beside others. One that fails or diverges leaves; the others continue.

Every call into a plugin passes through a :class:`~kdbench.engine.guard.Guard`. What a learner's plugins raise or leave
changed in the process is that learner's failure and no other's; what the teacher's network does so while students train
fails those that learn from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from torch import Tensor

from kdbench.data.feed import Feed, Minibatch
from kdbench.engine.added import AddedMetrics
from kdbench.engine.device import Stopwatch
from kdbench.engine.evaluation import Evaluation
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.guard import Guard, refuse_writing
from kdbench.engine.learner import Learner
from kdbench.engine.lessons import Lessons
from kdbench.engine.outcome import outcome
from kdbench.engine.sharing import share_stage
from kdbench.errors import KdbenchError
from kdbench.results import DataUsed, Environment, EpochRecord, Failure, TeacherResult, TrialResult
from kdbench.status import Status


class Interrupted(KdbenchError):  # noqa: N818 - it was asked for, it is no error
    """The user, or a scheduler, asked to stop; training can resume from the checkpoints."""


class Listener(Protocol):
    """Hears what happens to each learner."""

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        """An epoch ended."""

    def finished(self, identifier: str, result: TrialResult | TeacherResult) -> None:
        """A learner is done, or diverged."""

    def failed(self, identifier: str, error: Failure) -> None:
        """A learner failed."""


class Lockstep:
    """Trains learners that see one feed, until each is finished, failed or diverged."""

    def __init__(
        self,
        learners: Sequence[Learner],
        feed: Feed,
        teacher: FrozenTeacher | None,
        listener: Listener,
        *,
        data: DataUsed,
        environment: Environment,
        checkpoint_every: int,
        stop: Callable[[], bool] = lambda: False,
        overdue: Callable[[], bool] = lambda: False,
        watchful: bool = False,
        added: AddedMetrics | None = None,
    ) -> None:
        """``stop`` is asked after each epoch, ``overdue`` before each batch: that leaves the last checkpoint.

        ``watchful`` looks for replaced functions after each call of a plugin, instead of once an epoch. ``added`` are
        the metrics that are measured on the test set beside the built-in ones.
        """
        self.learners = learners
        self.feed = feed
        self.listener = listener
        self.data = data
        self.environment = environment
        self.checkpoint_every = checkpoint_every
        self.stop = stop
        self.overdue = overdue
        self.device = learners[0].trainer.device
        learners[0].trainer.precision.prepare()
        added = AddedMetrics() if added is None else added
        self._guard = Guard(
            learners, teacher, failed=listener.failed, stop=stop, watchful=watchful, modules=added.modules
        )
        self.lessons = Lessons(teacher, feed, self._guard, learners[0]) if teacher is not None else None
        self._evaluation = Evaluation(feed, self._guard, self.lessons, partial(_leave_if, overdue), added)
        self._guard.refuse_sharing(learners)

    @property
    def withdrawn(self) -> list[Learner]:
        """Those that must be trained again from their checkpoints; see :meth:`Guard.withdraw_if_replaced`."""
        return self._guard.withdrawn

    @property
    def replaced(self) -> list[str]:
        """The functions that were replaced under them."""
        return self._guard.replaced

    def run(self) -> None:
        """Train to the end. Raises :class:`Interrupted` after writing checkpoints if asked to stop.

        If overdue, it raises at the next batch and writes none: a checkpoint is always that of an epoch's end.
        """
        while active := [learner for learner in self.learners if learner.active]:
            # Those that a checkpoint put ahead wait until the others have caught up.
            position = min(learner.position for learner in active)
            self._epoch([learner for learner in active if learner.position == position])
            waiting = [learner for learner in self.learners if learner.active]
            if waiting and self.stop():
                for learner in waiting:
                    self._guard.call(learner, learner.save)
                raise Interrupted("interrupted")

    def _epoch(self, learners: list[Learner]) -> None:
        position = learners[0].position
        leaders = self._leaders(learners)
        trained = [learner for learner in learners if leaders[learner.id] is learner]
        for learner in trained:
            self._guard.call(learner, learner.trainer.begin_epoch, thorough=True)
        taught = [learner for learner in learners if learner.active and learner.trainer.is_taught]
        watch = Stopwatch(self.device)
        batches = iter(self.feed.epoch(position.stream, position.epoch))
        for number in range(self.feed.steps_per_epoch):
            _leave_if(self.overdue)
            self._step((position.stream, position.epoch, number), next(batches), trained, watch)
        self._guard.withdraw_if_replaced(learners)
        share = watch.read() / max(len(taught), 1)
        for learner in learners:
            self._guard.call(learner, lambda: self._follow(learner, leaders[learner.id]))  # noqa: B023
        # A stage that several share cost each of them its part.
        laps = {learner.id: learner.trainer.lap() for learner in trained if learner.active}
        sharers = Counter(leader.id for leader in leaders.values())
        records: dict[str, EpochRecord] = {}
        for learner in learners:
            if not learner.active:
                continue
            leader = leaders[learner.id].id
            cost = laps[leader] / sharers[leader], share if learner in taught else 0.0
            self._guard.call(learner, lambda: records.update({learner.id: learner.end_epoch(*cost)}))  # noqa: B023
        if position.main:
            self._evaluation.complete([learner for learner in learners if learner.active], records)
        self._guard.withdraw_if_replaced(learners)
        for learner in learners:
            self._guard.call(learner, lambda: self._conclude(learner, records[learner.id]), thorough=True)  # noqa: B023

    def _step(
        self, when: tuple[str, int, int], minibatch: Minibatch, learners: Sequence[Learner], watch: Stopwatch
    ) -> None:
        """One batch: once through the teacher, then through every student. ``when``: stage, epoch, step."""
        number = when[-1]
        active = [learner for learner in learners if learner.active]
        reads = tuple({name for learner in active for name in learner.trainer.phase.teacher_reads})
        lessons = self.lessons if any(learner.trainer.is_taught for learner in active) else None
        watch.start()
        shown = lessons.show(minibatch.images, reads, active, when) if lessons is not None else None
        watch.stop()
        kept = {name: tensor.clone() for name, tensor in _beside_images(minibatch).items()}
        versions = _versions(minibatch, shown)
        images_version = minibatch.images._version
        for place, learner in enumerate(active):
            self._guard.call(learner, lambda: learner.trainer.step(number, minibatch, shown), thorough=number == 0)  # noqa: B023
            if minibatch.images._version != images_version:
                self._guard.expel_from_images(active[place:])
                break
            if _versions(minibatch, shown) == versions:
                continue
            # Several share these tensors: who wrote into them leaves, and the next ones get them as they were.
            self._guard.call(learner, refuse_writing)
            minibatch = replace(minibatch, **{name: tensor.clone() for name, tensor in kept.items()})
            shown = lessons.show(minibatch.images, reads, active, when) if lessons is not None else None
            versions = _versions(minibatch, shown)

    def _follow(self, learner: Learner, leader: Learner) -> None:
        if leader is learner:
            return
        if leader.error is not None:
            raise leader.error
        learner.trainer.follow(leader.trainer)

    def _leaders(self, learners: Sequence[Learner]) -> dict[str, Learner]:
        """By learner, the one that trains for it: itself, but in a stage that several share."""
        leaders: dict[str, Learner] = {}
        for learner in learners:
            same = (other for other in leaders.values() if share_stage(other, learner))
            leaders[learner.id] = next(same, learner)
        return leaders

    def _conclude(self, learner: Learner, record: EpochRecord) -> None:
        learner.progress.records.append(record)
        with learner.writing():
            learner.folder.append_epoch(record)
        self.listener.epoch(learner.id, record)
        if record.diverged:
            learner.finished = True
            self._finish(learner, Status.DIVERGED, record)
            return
        stage = learner.progress.phase_index
        learner.advance()
        if learner.finished:
            self._finish(learner, Status.DONE, record)
        elif learner.progress.phase_index != stage or learner.progress.epoch % self.checkpoint_every == 0:
            learner.save()

    def _finish(self, learner: Learner, status: Status, last: EpochRecord) -> None:
        """Write the student, if it has one that is trained, and the outcome."""
        if status is Status.DONE:
            learner.write_student()
        fields = {**outcome(learner, status, last, self.feed), "data": self.data, "environment": self.environment}
        if self.lessons is not None:
            fields["teacher"] = self.lessons.teacher.used
        with learner.writing():
            result = learner.folder.finish(**fields)
        self.listener.finished(learner.id, result)


def _leave_if(overdue: Callable[[], bool]) -> None:
    if overdue():
        raise Interrupted("interrupted before the end of an epoch")


def _beside_images(minibatch: Minibatch) -> dict[str, Tensor]:
    """What there is of a batch besides the images: small tensors."""
    return {name: value for name, value in vars(minibatch).items() if value is not None and name != "images"}


def _versions(minibatch: Minibatch, shown: Mapping[str, Tensor] | None) -> list[int]:
    """Counters that rise when anybody writes into what all learners share, but for the images."""
    return [tensor._version for tensor in (*_beside_images(minibatch).values(), *(shown or {}).values())]
