"""Lockstep: the students of a cohort advance batch by batch together.

Each batch is augmented once and passes the teacher once. A learner draws on nothing that another one does,
so that it ends with the same bits alone as beside others. One that fails or diverges leaves; the others continue.

Every call into a plugin passes through :meth:`Lockstep._attempt`. What a learner's plugins raise or leave changed in
the process is that learner's failure and no other's; what the teacher's network does so while students train fails
those that learn from it (see :mod:`kdbench.isolation`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kdbench import isolation
from kdbench.data.feed import EvaluationSplit, Feed, Minibatch
from kdbench.engine.device import Precision, Stopwatch, responds
from kdbench.engine.evaluate import collect, measure
from kdbench.engine.learner import Learner
from kdbench.engine.outputs import at_least_float32
from kdbench.engine.progress import now
from kdbench.engine.sharing import share_stage
from kdbench.errors import KdbenchError, TrialError, in_words
from kdbench.method import Signature
from kdbench.metrics import HEADLINE
from kdbench.models.base import TappedModel
from kdbench.results import (
    Best,
    Cost,
    DataUsed,
    Environment,
    EpochRecord,
    Failure,
    TeacherResult,
    TeacherUsed,
    TrialResult,
)
from kdbench.seeding import derive
from kdbench.status import Status


class Interrupted(KdbenchError):  # noqa: N818 - it was asked for, it is no error
    """The user, or a scheduler, asked to stop; training can resume from the checkpoints."""


class Listener(Protocol):
    """Is told what happens to each learner."""

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        """An epoch ended."""

    def finished(self, identifier: str, result: TrialResult | TeacherResult) -> None:
        """A learner is done, or diverged."""

    def failed(self, identifier: str, error: Failure) -> None:
        """A learner failed."""


@dataclass
class Teacher:
    """A network that is not trained any more, in eval mode, and what is known of it."""

    network: TappedModel
    signature: Signature
    used: TeacherUsed
    """As results name it."""
    foreign: bool = True
    """Whether a third party provides the network."""

    def __call__(self, images: Tensor, reads: Sequence[str], precision: Precision) -> dict[str, Tensor]:
        """Its outputs for a batch, without gradients, in float32."""
        with torch.no_grad(), precision.autocast():
            raw = self.network(images, reads)
        return {name: at_least_float32(value) for name, value in raw.items()}


class Lockstep:
    """Trains learners that see one feed, until each is finished, failed or diverged."""

    def __init__(
        self,
        learners: Sequence[Learner],
        feed: Feed,
        teacher: Teacher | None,
        listener: Listener,
        *,
        data: DataUsed,
        environment: Environment,
        checkpoint_every: int,
        stop: Callable[[], bool] = lambda: False,
        overdue: Callable[[], bool] = lambda: False,
        watchful: bool = False,
    ) -> None:
        """``stop`` is asked after each epoch, ``overdue`` before each batch: that leaves the last checkpoint.

        ``watchful`` looks for replaced functions after each call of a plugin, instead of once an epoch.
        """
        self.learners = learners
        self.feed = feed
        self.teacher = teacher
        self.listener = listener
        self.data = data
        self.environment = environment
        self.checkpoint_every = checkpoint_every
        self.stop = stop
        self.overdue = overdue
        self.device = learners[0].trainer.device
        self.precision = learners[0].trainer.precision
        self._seed = learners[0].trainer.seed
        self.precision.prepare()
        self._teacher_logits: Tensor | None = None
        self.watchful = watchful
        self._teacher_failed = False
        self.withdrawn: list[Learner] = []
        """Those that must be trained again from their checkpoints: a neighbour replaced a function under them."""
        self.replaced: list[str] = []
        """Those functions."""
        self._originals = isolation.Originals(_modules(learners, teacher))
        self._refuse_sharing()

    def run(self) -> None:
        """Train to the end. Raises :class:`Interrupted` after writing checkpoints if told to stop.

        If overdue, it raises at the next batch and writes none: a checkpoint is always that of an epoch's end.
        """
        while active := [learner for learner in self.learners if learner.active]:
            # Those that a checkpoint put ahead wait until the others have caught up.
            position = min(learner.position for learner in active)
            self._epoch([learner for learner in active if learner.position == position])
            waiting = [learner for learner in self.learners if learner.active]
            if waiting and self.stop():
                for learner in waiting:
                    self._guard(learner, learner.save)
                raise Interrupted("interrupted")

    def _epoch(self, learners: list[Learner]) -> None:
        position = learners[0].position
        leaders = self._leaders(learners)
        trained = [learner for learner in learners if leaders[learner.id] is learner]
        for learner in trained:
            self._guard(learner, learner.trainer.begin_epoch, thorough=True)
        taught = [learner for learner in learners if learner.active and learner.trainer.is_taught]
        watch = Stopwatch(self.device)
        batches = iter(self.feed.epoch(position.stream, position.epoch))
        for number in range(self.feed.steps_per_epoch):
            self._leave_if_overdue()
            self._step((position.stream, position.epoch, number), next(batches), trained, watch)
        self._withdraw_if_replaced(learners)
        share = watch.read() / max(len(taught), 1)
        for learner in learners:
            self._guard(learner, lambda: self._follow(learner, leaders[learner.id]))  # noqa: B023
        # A stage that several share cost each of them its part.
        laps = {learner.id: learner.trainer.lap() for learner in trained if learner.active}
        sharers = Counter(leader.id for leader in leaders.values())
        records: dict[str, EpochRecord] = {}
        for learner in learners:
            if not learner.active:
                continue
            leader = leaders[learner.id].id
            cost = laps[leader] / sharers[leader], share if learner in taught else 0.0
            self._guard(learner, lambda: records.update({learner.id: learner.end_epoch(*cost)}))  # noqa: B023
        if position.main:
            self._evaluate([learner for learner in learners if learner.active], records)
        self._withdraw_if_replaced(learners)
        for learner in learners:
            self._guard(learner, lambda: self._conclude(learner, records[learner.id]), thorough=True)  # noqa: B023

    def _step(
        self, when: tuple[str, int, int], minibatch: Minibatch, learners: Sequence[Learner], watch: Stopwatch
    ) -> None:
        """One batch: once through the teacher, then through every student. ``when``: stage, epoch, step."""
        number = when[-1]
        active = [learner for learner in learners if learner.active]
        reads = tuple({name for learner in active for name in learner.trainer.phase.teacher_reads})
        teacher = self.teacher if any(learner.trainer.is_taught for learner in active) else None
        watch.start()
        shown = self._show(teacher, minibatch.images, reads, active, when) if teacher else None
        watch.stop()
        kept = {name: tensor.clone() for name, tensor in _beside_images(minibatch).items()}
        versions = _versions(minibatch, shown)
        images_version = minibatch.images._version
        for place, learner in enumerate(active):
            self._guard(learner, lambda: learner.trainer.step(number, minibatch, shown), thorough=number == 0)  # noqa: B023
            if minibatch.images._version != images_version:
                self._expel_from_images(active[place:])
                break
            if _versions(minibatch, shown) == versions:
                continue
            # Several share these tensors: who wrote into them leaves, and the next ones get them as they were.
            self._guard(learner, _refuse_writing)
            minibatch = replace(minibatch, **{name: tensor.clone() for name, tensor in kept.items()})
            shown = self._show(teacher, minibatch.images, reads, active, when) if teacher else None
            versions = _versions(minibatch, shown)

    def _leave_if_overdue(self) -> None:
        if self.overdue():
            raise Interrupted("interrupted before the end of an epoch")

    def _show(
        self,
        teacher: Teacher,
        images: Tensor,
        reads: Sequence[str],
        learners: Sequence[Learner],
        when: tuple[str, int, int],
    ) -> dict[str, Tensor] | None:
        """The teacher's outputs; where it fails, so do those that learn from it."""
        shown: list[dict[str, Tensor]] = []
        # A network of a third party may write into the images.
        own = images.clone() if teacher.foreign else images
        self._seed_teacher(teacher, *when)
        error = self._attempt(
            lambda: shown.append(teacher(own, reads, self.precision)),
            "the teacher's network",
            thorough=teacher.foreign and (self.watchful or when[-1] == 0),
        )
        if error is None:
            return shown[0]
        why = TrialError(f"its teacher failed: {in_words(error)}")
        for learner in learners:
            if learner.active and learner.trainer.is_taught:
                self._expel(learner, error if isinstance(error, torch.AcceleratorError) else why)
        return None

    def _seed_teacher(self, teacher: Teacher, *purpose: object) -> None:
        # A third party's may draw random numbers, which must not depend on the students.
        if teacher.foreign:
            seed = derive(self._seed, "teacher", *purpose)
            isolation.seed_globally(seed, self.device, foreign=True)

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

    def _evaluate(self, learners: Sequence[Learner], records: dict[str, EpochRecord]) -> None:
        """Complete the records with what is measured; each batch of a split is read once for all learners."""
        learners = [learner for learner in learners if not records[learner.id].diverged]
        predictions = self._predictions(learners, "test")
        for learner in learners:
            if learner.active:
                measured = measure(*predictions[learner.id], self._teacher_on_test())
                records[learner.id] = records[learner.id].model_copy(update={"metrics": measured})
        choosing = [learner for learner in learners if learner.active and learner.recipe.selection == "validation"]
        if not choosing:
            return
        predictions = self._predictions(choosing, "validation")
        for learner in choosing:
            if learner.active:
                top1 = measure(*predictions[learner.id])[HEADLINE]
                records[learner.id] = records[learner.id].model_copy(update={"validation": {HEADLINE: top1}})
                self._guard(learner, lambda: learner.consider(top1))  # noqa: B023

    def _predictions(self, learners: Sequence[Learner], split: EvaluationSplit) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits (N, C) and labels (N,) by learner; one that fails is left out."""
        logits: dict[str, list[Tensor]] = {learner.id: [] for learner in learners}
        labels = []
        contexts = {learner.id: ExitStack() for learner in learners}
        for learner in learners:
            self._guard(learner, lambda: contexts[learner.id].enter_context(learner.student.evaluated()))  # noqa: B023
        first = True
        for images, target in self.feed.evaluate(split) if learners else ():
            self._leave_if_overdue()
            labels.append(target)
            version = images._version
            for place, learner in enumerate(learners):
                if learner.active:
                    predict = lambda: logits[learner.id].append(learner.predict(images))  # noqa: B023, E731
                    self._guard(learner, predict, thorough=first)
                    if images._version != version:
                        self._expel_from_images(learners[place:])
                        break
            first = False
        for learner in learners:
            self._guard(learner, contexts[learner.id].close)
        whole = [learner.id for learner in learners if learner.active]
        return {identifier: (torch.cat(logits[identifier]), torch.cat(labels)) for identifier in whole}

    def _teacher_on_test(self) -> Tensor | None:
        teacher = self.teacher
        if teacher is not None and self._teacher_logits is None and not self._teacher_failed:
            found: list[Tensor] = []
            batches = self.feed.evaluate("test")
            predict = lambda: found.append(collect(lambda x: teacher.network(x)["logits"], batches)[0])  # noqa: E731
            self._seed_teacher(teacher, "test")
            error = self._attempt(predict, "the teacher's network", thorough=teacher.foreign)
            if error is None:
                self._teacher_logits = found[0]
            self._teacher_failed = error is not None
        return self._teacher_logits

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
        """Write the outcome. The headline is the last epoch, or the best on validation; never the best on test."""
        main = [record for record in learner.progress.records if record.top1 is not None]
        chosen = last
        if status is Status.DONE:
            learner.write_student()
            if learner.progress.best is not None:
                chosen = next(record for record in main if record.epoch == learner.progress.best_epoch)
        best = max(main, key=lambda record: record.metrics[HEADLINE], default=None)
        measured = {"metrics": chosen.metrics, "validation": chosen.validation} if status is Status.DONE else {}
        fields: dict[str, Any] = {
            "id": learner.id,
            "status": status,
            "stage": last.stage,
            "epoch": chosen.epoch,
            "selection": learner.recipe.selection,
            **measured,
            "best_on_test": Best(epoch=best.epoch, top1=best.metrics[HEADLINE]) if best else None,
            "cost": self._cost(learner),
            "data": self.data,
            "environment": self.environment,
            "started": learner.progress.started,
            "finished": now(),
        }
        if self.teacher is not None:
            fields["teacher"] = self.teacher.used
        with learner.writing():
            result = learner.folder.finish(**fields)
        self.listener.finished(learner.id, result)

    def _cost(self, learner: Learner) -> Cost:
        progress = learner.progress
        main = [record for record in progress.records if record.in_main]
        # The first epoch holds what libraries do once: choosing algorithms, allocating.
        steady = main[1:] or main
        steps = len(steady) * self.feed.steps_per_epoch
        seconds = sum(record.seconds for record in steady)
        return Cost(
            seconds=progress.seconds,
            teacher_seconds=progress.teacher_seconds,
            seconds_per_step=seconds / steps if steps else None,
            images_per_second=len(steady) * self.feed.n_train / seconds if seconds else None,
            peak_memory_bytes=progress.peak_memory_bytes,
            **learner.parameter_counts(),
            extra_epochs=len(progress.records) - len(main),
        )

    # ---- plugins

    def _guard(self, learner: Learner, action: Callable[[], object], *, thorough: bool = False) -> None:
        """Run a learner's part; what is wrong in or after it is its own failure, not the cohort's.

        ``thorough`` looks for replaced functions, too, where third parties take part.
        """
        if learner.error is not None:
            return
        thorough = (thorough or self.watchful) and bool(learner.foreign)
        error = self._attempt(action, learner.suspect, thorough=thorough)
        if learner.unwritable is not None and error is learner.unwritable:
            raise learner.unwritable  # nothing can be written: no fault of the learner, and it concerns all of them
        if error is not None:
            self._expel(learner, error)

    def _attempt(self, action: Callable[[], object], who: str, *, thorough: bool = False) -> BaseException | None:
        """Run ``action`` and undo what it left changed in the process; gives what went wrong, and raises nothing.

        But for ``KeyboardInterrupt`` after Ctrl-C was pressed twice.
        """
        before = isolation.state()
        error: BaseException | None = None
        try:
            action()
        except BaseException as raised:
            if isinstance(raised, KeyboardInterrupt) and self.stop():
                raise
            error = raised
        changed = isolation.undo(before)
        if thorough:
            changed += self._originals.undo()
        if not changed:
            return error
        what = f"{who} {isolation.complaint(changed)}"
        return TrialError(what if error is None else f"{in_words(error)}; {what}")

    def _expel(self, learner: Learner, error: BaseException) -> None:
        """Let a learner fail."""
        before = isolation.state()
        record = learner.fail(error)
        # What a plugin left open may change the state once more when its memory is freed.
        isolation.undo(before)
        self.listener.failed(learner.id, record)
        if isinstance(error, torch.AcceleratorError) and not responds(self.device):
            # Nothing works on the device any more in this process, and the blame may be another learner's.
            raise KdbenchError(
                f"{self.device} stopped working while {learner.id} was trained: {record.message}; what is "
                "saved is safe: run again, and leave a method out with --method if it happens again"
            ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _expel_from_images(self, learners: Sequence[Learner]) -> None:
        """Fail a learner that wrote into the images, and those that were to read them after it.

        Only networks of kdbench itself share the images. No copy is kept: it would cost every step of every cohort.
        """
        writer, *others = learners
        self._guard(writer, _refuse_writing)
        for other in others:
            if other.active:
                why = f"{writer.id} wrote into the images of a batch before they reached this student"
                self._expel(other, TrialError(why))

    def _withdraw_if_replaced(self, learners: Sequence[Learner]) -> None:
        """Replaced functions that appear within an epoch: nobody knows since when, and under whom.

        All learners of the epoch are withdrawn, to be trained again from their checkpoints by a watchful cohort, which
        finds out who it was. Where that did not help, those fail that third parties provide.
        """
        replaced = self._originals.undo()
        if not replaced:
            return
        self.replaced = replaced
        active = [learner for learner in learners if learner.active]
        suspects = [learner for learner in active if learner.foreign] or active
        alone = len(active) == 1 and not (self.teacher is not None and self.teacher.foreign)
        for learner in active:
            if alone or (self.watchful and learner in suspects):
                others = "" if len(suspects) == 1 else ", or another plugin,"
                self._expel(learner, TrialError(f"{learner.suspect}{others} {isolation.complaint(replaced)}"))
            else:
                learner.error = TrialError(f"withdrawn: a plugin {isolation.complaint(replaced)}")
                self.withdrawn.append(learner)

    def _refuse_sharing(self) -> None:
        """Fail learners that share a parameter, as when a plugin keeps an adapter in its class or module."""
        owners: dict[int, tuple[Learner, str]] = {}
        for learner in self.learners:
            for name, tensor in learner.trainer.modules.named_parameters():
                place = tensor.untyped_storage().data_ptr()
                owner, theirs = owners.setdefault(place, (learner, name)) if place else (learner, name)
                if owner is learner:
                    continue
                for guilty, what, other in ((learner, name, owner), (owner, theirs, learner)):
                    if guilty.error is None:
                        what = f"its '{what}' is the very tensor that {other.id} trains; make one for each instance"
                        self._expel(guilty, TrialError(what))
                break


def _beside_images(minibatch: Minibatch) -> dict[str, Tensor]:
    """What there is of a batch besides the images: small tensors."""
    return {name: value for name, value in vars(minibatch).items() if value is not None and name != "images"}


def _versions(minibatch: Minibatch, shown: Mapping[str, Tensor] | None) -> list[int]:
    """Counters that rise when anybody writes into what all learners share, but for the images."""
    return [tensor._version for tensor in (*_beside_images(minibatch).values(), *(shown or {}).values())]


def _refuse_writing() -> None:
    raise TrialError("it wrote into the teacher's outputs or the batch, which all students share; clone them first")


def _modules(learners: Sequence[Learner], teacher: Teacher | None) -> set[str]:
    """The modules of the plugins that take part, which must not patch each other."""
    parts = [part for learner in learners for part in (learner.student.network, learner.student.method)]
    parts += [teacher.network] if teacher is not None else []
    return {cls.__module__ for part in parts for cls in type(part).__mro__}
