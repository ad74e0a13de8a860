"""Lockstep: the students of a cohort train on the same batch at the same time.

Each batch is augmented once and passes through the teacher once. Learners are independent of each other: a learner
ends with bit-identical weights alone or in a cohort. A learner that fails or diverges leaves; the others continue.

Every call into a plugin passes through a :class:`~kdbench.engine.guard.Guard`. If a learner's plugin raises an error
or leaves the process changed, only that learner fails. If the teacher's network does so, the learners that use it fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol

from torch import Tensor

from kdbench.data.feed import Feed, Minibatch
from kdbench.engine.added import AddedMetrics
from kdbench.engine.device import Stopwatch
from kdbench.engine.evaluation import Evaluation
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.graphs import cuda
from kdbench.engine.graphs.lanes import Lanes
from kdbench.engine.graphs.replays import MakeRecorder, Replays
from kdbench.engine.guard import Guard, refuse_writing
from kdbench.engine.learner import Learner
from kdbench.engine.lessons import Lessons
from kdbench.engine.outcome import outcome
from kdbench.engine.sharing import share_stage
from kdbench.errors import KdbenchError
from kdbench.results import DataUsed, Environment, EpochRecord, Failure, TeacherResult, TrialResult
from kdbench.status import Status
from kdbench.suite.schema import Engine


class Interrupted(KdbenchError):  # noqa: N818 - requested, not an error
    """The user or a scheduler requested a stop; training can resume from the checkpoints."""


class Listener(Protocol):
    """Receives the events of each learner."""

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        """An epoch ended."""

    def finished(self, identifier: str, result: TrialResult | TeacherResult) -> None:
        """A learner finished or diverged."""

    def failed(self, identifier: str, error: Failure) -> None:
        """A learner failed."""


class Lockstep:
    """Trains learners on one data feed until each has finished, failed or diverged."""

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
        engine: Engine | None = None,
        make_recorder: MakeRecorder | None = None,
    ) -> None:
        """``stop`` is checked after each epoch, ``overdue`` before each batch (the last checkpoint then stays).

        ``watchful`` looks for replaced functions after each call of a plugin, instead of once per epoch. ``added`` are
        the metrics that are measured on the test set in addition to the built-in ones. ``engine`` says how a
        GPU executes the steps. With ``make_recorder``, by default that of CUDA graphs, steps are recorded and replayed.
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
        self._watch, self._together = Stopwatch(self.device), Stopwatch(self.device)
        engine = engine or Engine()
        learners[0].trainer.precision.prepare(deterministic=engine.deterministic)
        if make_recorder is None and engine.graphs == "auto" and self.device.type == "cuda":
            make_recorder = partial(cuda.recorder, self.device)
        added = AddedMetrics() if added is None else added
        self._guard = Guard(
            learners, teacher, failed=listener.failed, stop=stop, watchful=watchful, modules=added.modules
        )
        self.lessons = Lessons(teacher, feed, self._guard, learners[0]) if teacher is not None else None
        self._evaluation = Evaluation(feed, self._guard, self.lessons, partial(_leave_if, overdue), added)
        self._replays = (
            Replays(
                make_recorder,
                feed.n_train,
                teacher_is_foreign=teacher is not None and teacher.foreign,
                lanes=Lanes(self.device) if engine.streams else None,
            )
            if make_recorder is not None
            else None
        )
        self._guard.refuse_sharing(learners)

    @property
    def withdrawn(self) -> list[Learner]:
        """Learners that must be retrained from their checkpoints; see :meth:`Guard.withdraw_if_replaced`."""
        return self._guard.withdrawn

    @property
    def replaced(self) -> list[str]:
        """The functions that were replaced while they trained."""
        return self._guard.replaced

    def executed(self, learner: Learner) -> str | None:
        """Why the steps of a learner's stage are not replayed; None if they are, or if nothing is to be recorded."""
        return self._replays.reason(learner) if self._replays is not None else None

    def run(self) -> None:
        """Train to the end. If ``stop`` is true, raises :class:`Interrupted` after writing checkpoints.

        If ``overdue`` is true, raises before the next batch and writes no checkpoint: these belong to an epoch's end.
        """
        while active := [learner for learner in self.learners if learner.active]:
            # Learners that resumed at a later epoch wait for the others.
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
            if self._replays is not None:
                self._guard.call(learner, partial(self._replays.begin_epoch, learner))
        taught = [learner for learner in learners if learner.active and learner.trainer.is_taught]
        batches = iter(self.feed.epoch(position.stream, position.epoch))
        for number in range(self.feed.steps_per_epoch):
            _leave_if(self.overdue)
            self._step((position.stream, position.epoch, number), next(batches), trained)
        self._guard.withdraw_if_replaced(learners)
        if self._replays is not None:
            repeated = self._replays.wrong(trained)
            for learner in repeated:
                self._guard.call(learner, partial(self._replays.rewind, learner))
            learners = [learner for learner in learners if leaders[learner.id] not in repeated]
        share = self._watch.read() / max(len(taught), 1)
        for learner in learners:
            self._guard.call(learner, lambda: self._follow(learner, leaders[learner.id]))  # noqa: B023
        # The cost of a shared stage is divided among its learners; that of a repeated epoch is read after it.
        laps = self._laps([learner for learner in trained if learner.active and learner in learners])
        sharers = Counter(leader.id for leader in leaders.values())
        records: dict[str, EpochRecord] = {}
        for learner in learners:
            if not learner.active:
                continue
            leader = leaders[learner.id].id
            cost = laps[leader] / sharers[leader], share if learner in taught else 0.0
            self._guard.call(learner, lambda: records.update({learner.id: learner.end_epoch(*cost)}))  # noqa: B023
        if position.main:
            self._evaluation.complete([one for one in learners if one.active and one.is_evaluated], records)
        self._guard.withdraw_if_replaced(learners)
        for learner in learners:
            self._guard.call(learner, lambda: self._conclude(learner, records[learner.id]), thorough=True)  # noqa: B023
        for learner in trained:
            self._forget_if_ended(learner)

    def _laps(self, learners: Sequence[Learner]) -> dict[str, float]:
        """The seconds of each learner's steps; where these run beside each other, its share of the time of all."""
        laps = {learner.id: learner.trainer.lap() for learner in learners}
        together, summed = self._together.read(), sum(laps.values())
        return {key: lap * min(1.0, together / summed) if summed else lap for key, lap in laps.items()}

    def _step(self, when: tuple[str, int, int], minibatch: Minibatch, learners: Sequence[Learner]) -> None:
        """Train on one batch: one teacher pass, then a step of every student. ``when``: stage, epoch, step."""
        number = when[-1]
        active = [learner for learner in learners if learner.active]
        reads = tuple(sorted({name for learner in active for name in learner.trainer.phase.teacher_reads}))
        lessons = self.lessons if any(learner.trainer.is_taught for learner in active) else None
        replays = self._replays
        self._watch.start()
        if replays is not None:
            minibatch = replays.place(minibatch)
        fixed = replays.outputs if replays is not None and replays.is_fixed(minibatch) else None
        shown = lessons.show(minibatch.images, reads, active, when, fixed) if lessons is not None else None
        self._watch.stop()
        kept = {name: tensor.clone() for name, tensor in _beside_images(minibatch).items()}
        versions = _versions(minibatch, shown)
        images_version = minibatch.images._version
        self._together.start()
        for place, learner in enumerate(active):
            take = replays.take(learner, number) if replays is not None else None
            with replays.lane(learner) if replays is not None else nullcontext():
                self._guard.call(
                    learner,
                    lambda: learner.trainer.step(number, minibatch, shown, take),  # noqa: B023
                    thorough=number == 0,
                )
            self._forget_if_ended(learner)
            if minibatch.images._version != images_version:
                self._guard.expel_from_images(active[place:])
                break
            if _versions(minibatch, shown) == versions:
                continue
            # Learners share these tensors: one that wrote into them fails, and the next ones get the original values.
            self._guard.call(learner, refuse_writing)
            if replays is not None:
                replays.join()
            minibatch = replace(minibatch, **{name: tensor.clone() for name, tensor in kept.items()})
            shown = lessons.show(minibatch.images, reads, active, when) if lessons is not None else None
            versions = _versions(minibatch, shown)
        if replays is not None:
            replays.join()
        self._together.stop()

    def _forget_if_ended(self, learner: Learner) -> None:
        """Free the recordings and copies of a learner that has left: the others may need the memory."""
        if self._replays is not None and not learner.active:
            self._replays.forget(learner)

    def _follow(self, learner: Learner, leader: Learner) -> None:
        if leader is learner:
            return
        if leader.error is not None:
            raise leader.error
        learner.trainer.follow(leader.trainer)

    def _leaders(self, learners: Sequence[Learner]) -> dict[str, Learner]:
        """Map each learner to the one that trains for it: itself, or the first of those that share the stage."""
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
        """Write the student's weights (if it finished) and the result."""
        if status is Status.DONE:
            learner.write_student()
        fields = {**outcome(learner, status, last, self.feed), "data": self.data, "environment": self.environment}
        if self.lessons is not None:
            fields["teacher"] = self.lessons.teacher.used
        if self._replays is not None:
            fields["executed"] = self.executed(learner)
        with learner.writing():
            result = learner.folder.finish(**fields)
        self.listener.finished(learner.id, result)


def _leave_if(overdue: Callable[[], bool]) -> None:
    if overdue():
        raise Interrupted("interrupted before the end of an epoch")


def _beside_images(minibatch: Minibatch) -> dict[str, Tensor]:
    """The small tensors of a batch: all but the images."""
    return {name: value for name, value in vars(minibatch).items() if value is not None and name != "images"}


def _versions(minibatch: Minibatch, shown: Mapping[str, Tensor] | None) -> list[int]:
    """Version counters of the shared tensors, without the images; a write increases them."""
    return [tensor._version for tensor in (*_beside_images(minibatch).values(), *(shown or {}).values())]
