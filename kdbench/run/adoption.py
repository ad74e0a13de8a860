"""Takes over the results of equal trainings: of trials that differ only in a teacher that their training does not read.

What the training gave is copied, so that no two results share a file; what compares with the teacher is measured with
the trial's own one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from kdbench.data.feed import Feed
from kdbench.engine import adopted
from kdbench.engine.cohort import Interrupted
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.hookspecs import MetricSpec
from kdbench.metrics import METRICS
from kdbench.results import EpochRecord, TrialFolder, TrialRecord, TrialResult, store_code, write_atomically
from kdbench.results.equivalent import equivalents, has_begun
from kdbench.run.context import Context
from kdbench.run.listeners import TrialListener
from kdbench.suite.plan import Trial

SAME = ("device", "precision", "graphs", "deterministic", "torch")
"""Where these differ, so may the last bits of the weights: such a result is not adopted."""


class Adoption:
    """Adopts results for the trials of one process."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def trainings(self, wanted: Collection[str]) -> Collection[str]:
        """Those of some :attr:`~kdbench.suite.plan.Trial.training` of which this process can adopt a result."""
        return equivalents(self._context.folder, wanted, self._is_usable).keys()

    def _is_usable(self, training: str, result: TrialResult) -> bool:
        context = self._context
        if context.adopts_from is not None and result.id not in context.adopts_from:
            return False
        trial = next((one for one in context.opened.plan.trials if one.training == training), None)
        if trial is None or result.data.fingerprint != context.arrays.fingerprint:
            return False
        here = context.environment(trial.recipe)
        return all(getattr(result.environment, name) == getattr(here, name) for name in SAME)

    def __call__(
        self,
        trial: Trial,
        place: TrialFolder,
        feed: Feed,
        teacher: FrozenTeacher,
        new_learner: Callable[[], Learner | None],
    ) -> bool:
        """Whether the trial has a result now; otherwise it must be trained. One that has begun resumes instead.

        ``new_learner`` makes its student and method, and gives None if that fails.
        """
        if not trial.training or has_begun(self._context.folder, trial):
            return False
        for source in equivalents(self._context.folder, [trial.training], self._is_usable).get(trial.training, []):
            # A trial whose teacher was retrained does not adopt what it replaces.
            if source.identifier == trial.id:
                continue
            if damage := source.damage(thorough=True):
                self._context.warn(f"{source.path}: damaged: {damage}; {trial.id} does not adopt this result")
                continue
            found = _read(source)
            if found is not None and self._take_over(found, trial, place, feed, teacher, new_learner):
                return True
        return False

    def _take_over(
        self,
        found: _Found,
        trial: Trial,
        place: TrialFolder,
        feed: Feed,
        teacher: FrozenTeacher,
        new_learner: Callable[[], Learner | None],
    ) -> bool:
        context, result = self._context, found.result
        place.begin(TrialRecord.of(trial))
        store_code(place.path, context.resolver.code(trial))
        for name, content in found.files.items():
            write_atomically(place.path / name, partial(_fill, content), place.check)
        records = [self._kept(record) for record in found.epochs]
        fields: dict[str, Any] = {name: getattr(result, name) for name in result.model_fields_set - {"unmeasured"}}
        if found.reported is not None:
            reported = self._measured(records[found.reported], place, feed, teacher, new_learner)
            if reported is None:
                return False
            records[found.reported] = reported
            fields["metrics"] = reported.metrics
            if reported.unmeasured:
                fields["unmeasured"] = reported.unmeasured
        fields |= {"id": trial.id, "teacher": teacher.used, "adopted_from": result.trained_as}
        if result.trained_as == trial.id:
            del fields["adopted_from"]  # its own training, which another trial has kept
        place.write_epochs(records)
        context.notify("kdbench_trial_started", trial=trial, run=context.info)
        finished = place.finish(**fields)
        TrialListener({trial.id: trial}, context.notify, context.info).finished(trial.id, finished)
        return True

    def _measured(
        self,
        record: EpochRecord,
        place: TrialFolder,
        feed: Feed,
        teacher: FrozenTeacher,
        new_learner: Callable[[], Learner | None],
    ) -> EpochRecord | None:
        """The record of the reported epoch, completed by what compares with the teacher; None if that fails."""
        learner = new_learner()
        if learner is None:
            return None
        try:
            adopted.load_weights(learner, place.weights)
        except (RuntimeError, SafetensorError, OSError):
            return None
        stop = self._context.stop
        proceed = partial(_leave_if, stop.overdue)
        found = adopted.measured(
            learner,
            record,
            feed,
            teacher,
            self._context.added,
            deterministic=self._context.opened.suite.engine.deterministic,
            stop=stop.asked,
            proceed=proceed,
        )
        if found is None:
            return None
        # What the training gave is the truth: on a GPU, the last digits of another measurement may differ.
        metrics = found.metrics | record.metrics
        missing = {name: why for name, why in found.unmeasured.items() if name not in metrics}
        update = {"metrics": metrics, **({"unmeasured": missing} if missing or record.unmeasured else {})}
        return record.model_copy(update=update)

    def _kept(self, record: EpochRecord) -> EpochRecord:
        """A record without metrics that compare with the teacher, and without those that the suite does not add."""
        specs: Mapping[str, MetricSpec] = {**METRICS, **self._context.added.specs}
        kept = {name for name, metric in specs.items() if not metric.needs_teacher}
        own: dict[str, Any] = {
            field: {name: value for name, value in getattr(record, field).items() if name in kept}
            for field in ("metrics", "unmeasured")
            if field in record.model_fields_set
        }
        return record.model_copy(update=own)


@dataclass(frozen=True)
class _Found:
    """A result that is adopted, as it was read: the trial may be trained again, or removed, meanwhile."""

    result: TrialResult
    epochs: list[EpochRecord]
    reported: int | None
    """The index of the reported epoch; None if it diverged."""
    files: Mapping[str, bytes]
    """By name, those that are copied."""


def _read(source: TrialFolder) -> _Found | None:
    """A result with its files; None if they do not fit together, as after a change meanwhile."""
    result, epochs = source.result, source.epochs
    if result is None:
        return None
    files = {}
    for path in (source.weights, source.correct):
        if path.name not in result.files:
            continue
        try:
            files[path.name] = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(files[path.name]).hexdigest() != result.files[path.name].sha256:
            return None
    if not result.done:
        return _Found(result, epochs, None, files)
    found = (i for i, one in enumerate(epochs) if one.in_main and one.epoch == result.epoch)
    reported = next(found, None)
    return None if reported is None else _Found(result, epochs, reported, files)


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _leave_if(overdue: Callable[[], bool]) -> None:
    if overdue():
        raise Interrupted("interrupted while a result was measured")
