"""Lockstep: the students of a cohort advance batch by batch together.

Each batch is augmented once and passes the teacher once. A learner draws on nothing that another one does,
so that it ends with the same bits alone as in company. One that fails or diverges leaves; the others go on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kdbench.data.feed import EvaluationSplit, Feed, Minibatch
from kdbench.engine.device import Precision, Stopwatch
from kdbench.engine.evaluate import collect, measure
from kdbench.engine.learner import Learner, at_least_float32, now
from kdbench.errors import KdbenchError, ResultsError, TrialError
from kdbench.method import Signature
from kdbench.models.base import TappedModel


class Interrupted(KdbenchError):  # noqa: N818 - it was asked for, it is no error
    """The user, or a scheduler, asked to stop; training can resume from the checkpoints."""


class Listener(Protocol):
    """Is told what happens to each learner."""

    def epoch(self, identifier: str, record: Mapping[str, Any]) -> None:
        """An epoch ended."""

    def finished(self, identifier: str, result: Mapping[str, Any]) -> None:
        """A learner is done, or diverged."""

    def failed(self, identifier: str, error: Mapping[str, Any]) -> None:
        """A learner failed."""


@dataclass
class Teacher:
    """A network that is not trained any more, in eval mode, and what is known of it."""

    network: TappedModel
    signature: Signature
    facts: Mapping[str, Any]
    """``key``, ``sha256``, ``top1`` and ``seconds``, as results state them."""

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
        facts: Mapping[str, Any],
        checkpoint_every: int,
        stop: Callable[[], bool] = lambda: False,
        overdue: Callable[[], bool] = lambda: False,
    ) -> None:
        """``stop`` is asked after each epoch, ``overdue`` before each batch: that leaves the last checkpoint."""
        self.learners = learners
        self.feed = feed
        self.teacher = teacher
        self.listener = listener
        self.facts = facts
        """``data`` and ``environment`` of the results."""
        self.checkpoint_every = checkpoint_every
        self.stop = stop
        self.overdue = overdue
        self.device = learners[0].device
        self.precision = learners[0].precision
        self.precision.prepare()
        self._teacher_logits: Tensor | None = None

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
            self._guard(learner, learner.begin_epoch)
        taught = [learner for learner in learners if learner.active and _is_taught(learner)]
        watch = Stopwatch(self.device)
        batches = iter(self.feed.epoch(position.stream, position.epoch))
        for number in range(self.feed.steps_per_epoch):
            self._leave_if_overdue()
            self._step(number, next(batches), trained, watch)
        share = watch.read() / max(len(taught), 1)
        for learner in learners:
            self._guard(learner, lambda: self._follow(learner, leaders[learner.id]))  # noqa: B023
        # A stage that several share cost each of them its part.
        laps = {learner.id: learner.lap() for learner in trained}
        sharers = Counter(leader.id for leader in leaders.values())
        records: dict[str, dict[str, Any]] = {}
        for learner in learners:
            leader = leaders[learner.id].id
            cost = laps[leader] / sharers[leader], share if learner in taught else 0.0
            self._guard(learner, lambda: records.update({learner.id: learner.end_epoch(*cost)}))  # noqa: B023
        if position.main:
            self._evaluate([learner for learner in learners if learner.active], records)
        for learner in learners:
            self._guard(learner, lambda: self._conclude(learner, records[learner.id]))  # noqa: B023

    def _step(self, number: int, minibatch: Minibatch, learners: Sequence[Learner], watch: Stopwatch) -> None:
        """One batch: once through the teacher, then through every student."""
        active = [learner for learner in learners if learner.active]
        reads = tuple({name for learner in active for name in learner.phase.teacher_reads})
        teacher = self.teacher if any(_is_taught(learner) for learner in active) else None
        watch.start()
        shown = teacher(minibatch.images, reads, self.precision) if teacher else None
        watch.stop()
        kept = {name: tensor.clone() for name, tensor in _shared(minibatch).items()}
        versions = _versions(minibatch, shown)
        for learner in active:
            self._guard(learner, lambda: learner.step(number, minibatch, shown))  # noqa: B023
            if _versions(minibatch, shown) == versions:
                continue
            # All share these tensors: who wrote into them leaves, and the next ones get them as they were.
            self._guard(learner, _refuse_writing)
            minibatch = replace(minibatch, **{name: tensor.clone() for name, tensor in kept.items()})
            shown = teacher(minibatch.images, reads, self.precision) if teacher else None
            versions = _versions(minibatch, shown)

    def _leave_if_overdue(self) -> None:
        if self.overdue():
            raise Interrupted("interrupted before the end of an epoch")

    def _follow(self, learner: Learner, leader: Learner) -> None:
        if leader is learner:
            return
        if leader.error is not None:
            raise leader.error
        learner.follow(leader)

    def _leaders(self, learners: Sequence[Learner]) -> dict[str, Learner]:
        """By learner, the one that trains for it: itself, but in a stage that several share."""
        leaders: dict[str, Learner] = {}
        for learner in learners:
            same = (other for other in leaders.values() if other.shares_stage_with(learner))
            leaders[learner.id] = next(same, learner)
        return leaders

    def _evaluate(self, learners: Sequence[Learner], records: Mapping[str, dict[str, Any]]) -> None:
        """Add to the records what is measured; each batch of a split is read once for all learners."""
        learners = [learner for learner in learners if math.isfinite(records[learner.id]["train_loss"])]
        for identifier, (logits, labels) in self._predictions(learners, "test").items():
            records[identifier].update(measure(logits, labels, self._teacher_on_test()))
        choosing = [learner for learner in learners if learner.active and learner.recipe.selection == "validation"]
        if not choosing:
            return
        predictions = self._predictions(choosing, "validation")
        for learner in choosing:
            if learner.active:
                top1 = measure(*predictions[learner.id])["top1"]
                records[learner.id]["validation_top1"] = top1
                learner.consider(top1)

    def _predictions(self, learners: Sequence[Learner], split: EvaluationSplit) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits (N, C) and labels (N,) by learner; one that fails is left out."""
        logits: dict[str, list[Tensor]] = {learner.id: [] for learner in learners}
        labels = []
        with ExitStack() as stack:
            for learner in learners:
                stack.enter_context(learner.evaluated())
            for images, target in self.feed.evaluate(split) if learners else ():
                self._leave_if_overdue()
                labels.append(target)
                for learner in learners:
                    if learner.active:
                        self._guard(learner, lambda: logits[learner.id].append(learner.predict(images)))  # noqa: B023
        whole = [learner.id for learner in learners if learner.active]
        return {identifier: (torch.cat(logits[identifier]), torch.cat(labels)) for identifier in whole}

    def _teacher_on_test(self) -> Tensor | None:
        if self.teacher is not None and self._teacher_logits is None:
            network = self.teacher.network
            self._teacher_logits, _ = collect(lambda images: network(images)["logits"], self.feed.evaluate("test"))
        return self._teacher_logits

    def _conclude(self, learner: Learner, record: Mapping[str, Any]) -> None:
        learner.folder.append_epoch(record)
        self.listener.epoch(learner.id, record)
        finite = math.isfinite(record["train_loss"]) and math.isfinite(record.get("nll", 0.0))
        if not finite:
            learner.finished = True
            self._finish(learner, "diverged", record)
            return
        stage = learner.phase_index
        learner.advance()
        if learner.finished:
            self._finish(learner, "done", record)
        elif learner.phase_index != stage or learner.epoch % self.checkpoint_every == 0:
            learner.save()

    def _finish(self, learner: Learner, status: str, last: Mapping[str, Any]) -> None:
        """Write the outcome. The headline is the last epoch, or the best on validation; never the best on test."""
        main = [record for record in learner.records if "top1" in record]
        chosen = last
        if status == "done":
            learner.write_student()
            if learner.best is not None:
                chosen = next(record for record in main if record["epoch"] == learner.best[1])
        best = max(main, key=lambda record: record["top1"], default=None)
        metrics = ("top1", "top5", "nll", "ece", "agreement", "kl_to_teacher", "validation_top1")
        result = {
            "id": learner.id,
            "status": status,
            "stage": last["stage"],
            "epoch": chosen["epoch"],
            "selection": learner.recipe.selection,
            **({key: chosen[key] for key in metrics if key in chosen} if status == "done" else {}),
            "best_on_test": {"epoch": best["epoch"], "top1": best["top1"]} if best else None,
            "teacher": dict(self.teacher.facts) if self.teacher else None,
            "cost": self._cost(learner),
            **self.facts,
            "started": learner.started,
            "finished": now(),
        }
        learner.folder.finish(result)
        self.listener.finished(learner.id, result)

    def _cost(self, learner: Learner) -> dict[str, Any]:
        main = [record for record in learner.records if record["stage"] == "main"]
        # The first epoch holds what libraries do once: choosing algorithms, allocating.
        steady = main[1:] or main
        steps = len(steady) * self.feed.steps_per_epoch
        seconds = sum(record["seconds"] for record in steady)
        return {
            "seconds": learner.seconds,
            "teacher_seconds": learner.teacher_seconds,
            "seconds_per_step": seconds / steps if steps else None,
            "images_per_second": len(steady) * self.feed.n_train / seconds if seconds else None,
            "peak_memory_bytes": learner.peak_memory_bytes,
            **learner.parameter_counts(),
            "extra_epochs": len(learner.records) - len(main),
        }

    def _guard(self, learner: Learner, action: Callable[[], None]) -> None:
        """Run a learner's part; what goes wrong in it is its own failure, not the cohort's."""
        if learner.error is not None:
            return
        try:
            action()
        except ResultsError:
            raise  # nothing can be written: that is no fault of the learner, and concerns all of them
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin raises
            record = learner.fail(error)
            self.listener.failed(learner.id, record)
            if isinstance(error, torch.AcceleratorError):
                # Nothing works on the device any more in this process, and the blame may be another learner's.
                raise KdbenchError(
                    f"{self.device} stopped working while {learner.id} was trained: {record['message']}; what is "
                    "saved is safe: run again, and leave a method out with --method if it happens again"
                ) from None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def _is_taught(learner: Learner) -> bool:
    return learner.method.needs_teacher or not learner.in_main


def _shared(minibatch: Minibatch) -> dict[str, Tensor]:
    """What methods see of a batch; they do not see the images."""
    return {name: value for name, value in vars(minibatch).items() if value is not None and name != "images"}


def _versions(minibatch: Minibatch, shown: Mapping[str, Tensor] | None) -> list[int]:
    """Counters that rise when anybody writes into what all learners share."""
    return [tensor._version for tensor in (*_shared(minibatch).values(), *(shown or {}).values())]


def _refuse_writing() -> None:
    raise TrialError("it wrote into the teacher's outputs or the batch, which all students share; clone them first")
