"""The record of a training that has ended."""

from __future__ import annotations

from typing import Any

from kdbench.data.feed import Feed
from kdbench.engine.learner import Learner
from kdbench.engine.progress import now
from kdbench.metrics import HEADLINE
from kdbench.results import Best, Cost, EpochRecord
from kdbench.status import Status


def outcome(learner: Learner, status: Status, last: EpochRecord, feed: Feed) -> dict[str, Any]:
    """The fields of ``result.json`` that come from the training; teacher, data and environment are added later.

    The headline is the last epoch, or the best one on validation; never the best on test.
    """
    progress = learner.progress
    main = [record for record in progress.records if record.top1 is not None]
    chosen = last
    if status is Status.DONE and progress.best_epoch is not None:
        chosen = next(record for record in main if record.epoch == progress.best_epoch)
    best = max(main, key=lambda record: record.metrics[HEADLINE], default=None)
    measured: dict[str, Any] = {}
    if status is Status.DONE:
        measured = {"metrics": chosen.metrics, "validation": chosen.validation}
        measured |= {"unmeasured": chosen.unmeasured} if chosen.unmeasured else {}
    return {
        "id": learner.id,
        "status": status,
        "stage": last.stage,
        "epoch": chosen.epoch,
        "selection": learner.recipe.selection,
        **measured,
        "best_on_test": Best(epoch=best.epoch, top1=best.metrics[HEADLINE]) if best else None,
        "cost": cost(learner, feed),
        "started": progress.started,
        "finished": now(),
    }


def cost(learner: Learner, feed: Feed) -> Cost:
    """The time and memory of the training."""
    progress = learner.progress
    main = [record for record in progress.records if record.in_main]
    # The first epoch includes one-time work of libraries: choosing algorithms, allocating memory.
    steady = main[1:] or main
    steps = len(steady) * feed.steps_per_epoch
    seconds = sum(record.seconds for record in steady)
    return Cost(
        seconds=progress.seconds,
        teacher_seconds=progress.teacher_seconds,
        seconds_per_step=seconds / steps if steps else None,
        images_per_second=len(steady) * feed.n_train / seconds if seconds else None,
        peak_memory_bytes=progress.peak_memory_bytes,
        **learner.parameter_counts(),
        extra_epochs=len(progress.records) - len(main),
    )
