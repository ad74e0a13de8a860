"""Lockstep: the students of a cohort advance batch by batch together.

Each batch is augmented once and passes the teacher once. A learner draws on nothing that another one does,
so that it ends with the same bits alone as in company. One that fails or diverges leaves; the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kdbench.data.feed import Feed
from kdbench.engine.device import Precision, Stopwatch
from kdbench.engine.evaluate import collect, measure
from kdbench.engine.learner import Learner, now
from kdbench.errors import KdbenchError, ResultsError
from kdbench.method import Signature
from kdbench.models.base import TappedModel


class Interrupted(KdbenchError):  # noqa: N818 - it was asked for, it is no error
    """The user asked to stop; all checkpoints are written."""


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
        """Its outputs for a batch, without gradients."""
        with torch.no_grad(), precision.autocast():
            return self.network(images, reads)  # type: ignore[no-any-return]


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
    ) -> None:
        self.learners = learners
        self.feed = feed
        self.teacher = teacher
        self.listener = listener
        self.facts = facts
        """``data`` and ``environment`` of the results."""
        self.checkpoint_every = checkpoint_every
        self.stop = stop
        self.device = learners[0].device
        self.precision = learners[0].precision
        self.precision.prepare()
        self._teacher_logits: dict[str, Tensor] = {}

    def run(self) -> None:
        """Train to the end. Raises :class:`Interrupted` after writing checkpoints if told to stop."""
        while active := [learner for learner in self.learners if learner.active]:
            # Those that a checkpoint put ahead wait until the others have caught up.
            position = min(learner.position for learner in active)
            self._epoch([learner for learner in active if learner.position == position])
            waiting = [learner for learner in self.learners if learner.active]
            if waiting and self.stop():
                for learner in waiting:
                    learner.save()
                raise Interrupted("interrupted")

    def _epoch(self, learners: list[Learner]) -> None:
        position = learners[0].position
        leaders = self._leaders(learners)
        trained = [learner for learner in learners if leaders[learner.id] is learner]
        for learner in trained:
            self._guard(learner, learner.begin_epoch)
        reads = tuple({name for learner in trained for name in learner.phase.teacher_reads})
        watch = Stopwatch(self.device)
        batches = iter(self.feed.epoch(position.stream, position.epoch))
        for number in range(self.feed.steps_per_epoch):
            watch.start()
            minibatch = next(batches)
            shown = self.teacher(minibatch.images, reads, self.precision) if self.teacher else None
            watch.stop()
            for learner in trained:
                if learner.active:
                    self._guard(learner, lambda: learner.step(number, minibatch, shown))  # noqa: B023
        share = watch.read() / len(learners)
        for learner in learners:
            self._guard(learner, lambda: self._follow(learner, leaders[learner.id]))  # noqa: B023
        for learner in learners:
            if learner.active:
                self._guard(learner, lambda: self._end_epoch(learner, share))  # noqa: B023

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

    def _end_epoch(self, learner: Learner, teacher_seconds: float) -> None:
        record = learner.end_epoch(teacher_seconds)
        finite = math.isfinite(record["train_loss"])
        if learner.in_main and finite:
            record.update(self._evaluate(learner, record))
            finite = math.isfinite(record["nll"])
        learner.folder.append_epoch(record)
        self.listener.epoch(learner.id, record)
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

    def _evaluate(self, learner: Learner, record: Mapping[str, Any]) -> dict[str, Any]:
        logits, labels = learner.predict(self.feed.evaluate("test"))
        metrics: dict[str, Any] = measure(logits, labels, self._teacher_on_test())
        if learner.recipe.selection == "validation":
            logits, labels = learner.predict(self.feed.evaluate("validation"))
            metrics["validation_top1"] = measure(logits, labels)["top1"]
            learner.consider(metrics["validation_top1"])
        return metrics

    def _teacher_on_test(self) -> Tensor | None:
        if self.teacher is None:
            return None
        if "test" not in self._teacher_logits:
            teacher, precision = self.teacher, self.precision
            self._teacher_logits["test"], _ = collect(
                lambda images: teacher(images, (), precision)["logits"], self.feed.evaluate("test")
            )
        return self._teacher_logits["test"]

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
        steps = len(main) * self.feed.steps_per_epoch
        seconds = sum(record["seconds"] for record in main)
        return {
            "seconds": learner.seconds,
            "teacher_seconds": learner.teacher_seconds,
            "seconds_per_step": seconds / steps if steps else None,
            "images_per_second": len(main) * self.feed.n_train / seconds if seconds else None,
            "peak_memory_bytes": learner.peak_memory_bytes,
            **learner.parameter_counts(),
            "extra_epochs": len(learner.records) - len(main),
        }

    def _guard(self, learner: Learner, action: Callable[[], None]) -> None:
        """Run a learner's part; what goes wrong in it is its own failure, not the cohort's."""
        try:
            action()
        except ResultsError:
            raise  # nothing can be written: that is no fault of the learner, and concerns all of them
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises
            if self.device.type == "cuda" and isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            self.listener.failed(learner.id, learner.fail(error))

