"""Evaluates the learners of a cohort after an epoch; each batch of a split is read once for all learners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from kdbench import isolation
from kdbench.data.feed import EvaluationSplit, Feed
from kdbench.engine.added import AddedMetrics
from kdbench.engine.evaluate import classified, measure
from kdbench.engine.guard import Guard
from kdbench.engine.learner import Learner
from kdbench.engine.lessons import Lessons
from kdbench.metrics import HEADLINE
from kdbench.results import EpochRecord
from kdbench.seeding import derive


class Evaluation:
    """Predictions of the learners on the test and validation splits, and their metrics."""

    def __init__(
        self,
        feed: Feed,
        guard: Guard,
        lessons: Lessons | None,
        proceed: Callable[[], None],
        added: AddedMetrics,
    ) -> None:
        """``proceed`` is called before each batch, and may raise to end the run."""
        self._added = added
        self._feed = feed
        self._guard = guard
        self._lessons = lessons
        self._proceed = proceed

    def complete(self, learners: Sequence[Learner], records: dict[str, EpochRecord]) -> None:
        """Add the metrics to each learner's record, and keep the weights that are best on validation."""
        learners = [learner for learner in learners if not records[learner.id].diverged]
        predictions = self._predictions(learners, "test")
        if self._added:
            # First: otherwise a metric would be blamed for a function that a learner's plugin replaced.
            self._guard.withdraw_if_replaced(learners)
        for learner in learners:
            if learner.active:
                measured = self._measured(learner, records[learner.id].epoch, *predictions[learner.id])
                learner.correct = classified(*predictions[learner.id])
                records[learner.id] = records[learner.id].model_copy(update=measured)
        choosing = [learner for learner in learners if learner.active and learner.recipe.selection == "validation"]
        if not choosing:
            return
        predictions = self._predictions(choosing, "validation")
        for learner in choosing:
            if learner.active:
                top1 = measure(*predictions[learner.id])[HEADLINE]
                records[learner.id] = records[learner.id].model_copy(update={"validation": {HEADLINE: top1}})
                self._guard.call(learner, lambda: learner.consider(top1))  # noqa: B023

    def _measured(self, learner: Learner, epoch: int, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """A record's fields with the metrics of the test set."""
        teacher_logits = self._lessons.on_test() if self._lessons is not None else None
        added = self._added.measure(
            logits,
            labels,
            teacher_logits,
            attempt=self._guard.attempt,
            seed=lambda name: isolation.seed_globally(
                derive(learner.trainer.seed, "metric", name, epoch), logits.device, foreign=True
            ),
        )
        # The field is left out if every metric was measured.
        unmeasured = {"unmeasured": added.unmeasured} if added.unmeasured else {}
        return {"metrics": measure(logits, labels, teacher_logits) | added.values, **unmeasured}

    def _predictions(self, learners: Sequence[Learner], split: EvaluationSplit) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits (N, C) and labels (N,) by learner; a learner that fails is left out."""
        logits: dict[str, list[Tensor]] = {learner.id: [] for learner in learners}
        labels = []
        contexts = {learner.id: ExitStack() for learner in learners}
        for learner in learners:
            enter = lambda: contexts[learner.id].enter_context(learner.student.evaluated())  # noqa: B023, E731
            self._guard.call(learner, enter)
        first = True
        for images, target in self._feed.evaluate(split) if learners else ():
            self._proceed()
            labels.append(target)
            version = images._version
            for place, learner in enumerate(learners):
                if learner.active:
                    predict = lambda: logits[learner.id].append(learner.predict(images))  # noqa: B023, E731
                    self._guard.call(learner, predict, thorough=first)
                    if images._version != version:
                        self._guard.expel_from_images(learners[place:])
                        break
            first = False
        for learner in learners:
            self._guard.call(learner, contexts[learner.id].close)
        whole = [learner.id for learner in learners if learner.active]
        return {identifier: (torch.cat(logits[identifier]), torch.cat(labels)) for identifier in whole}
