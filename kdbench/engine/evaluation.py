"""Measures the learners of a cohort after an epoch; each batch of a split is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from kdbench.data.feed import EvaluationSplit, Feed
from kdbench.engine.evaluate import measure
from kdbench.engine.guard import Guard
from kdbench.engine.learner import Learner
from kdbench.engine.lessons import Lessons
from kdbench.metrics import HEADLINE
from kdbench.results import EpochRecord


class Evaluation:
    """What the learners predict for the test and validation splits, and how good that is."""

    def __init__(self, feed: Feed, guard: Guard, lessons: Lessons | None, proceed: Callable[[], None]) -> None:
        """``proceed`` is called before each batch, and may raise to end the run."""
        self._feed = feed
        self._guard = guard
        self._lessons = lessons
        self._proceed = proceed

    def complete(self, learners: Sequence[Learner], records: dict[str, EpochRecord]) -> None:
        """Add to the records, by learner, what is measured, and keep the weights that are best on validation."""
        learners = [learner for learner in learners if not records[learner.id].diverged]
        predictions = self._predictions(learners, "test")
        for learner in learners:
            if learner.active:
                teacher_logits = self._lessons.on_test() if self._lessons is not None else None
                measured = measure(*predictions[learner.id], teacher_logits)
                records[learner.id] = records[learner.id].model_copy(update={"metrics": measured})
        choosing = [learner for learner in learners if learner.active and learner.recipe.selection == "validation"]
        if not choosing:
            return
        predictions = self._predictions(choosing, "validation")
        for learner in choosing:
            if learner.active:
                top1 = measure(*predictions[learner.id])[HEADLINE]
                records[learner.id] = records[learner.id].model_copy(update={"validation": {HEADLINE: top1}})
                self._guard.call(learner, lambda: learner.consider(top1))  # noqa: B023

    def _predictions(self, learners: Sequence[Learner], split: EvaluationSplit) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits (N, C) and labels (N,) by learner; one that fails is left out."""
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
