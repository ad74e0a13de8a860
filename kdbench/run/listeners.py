"""Forward the engine's events to observers, as events of trials and teachers."""

from __future__ import annotations

from collections.abc import Mapping

from kdbench.hookspecs import RunInfo
from kdbench.observers.notify import Notify
from kdbench.results import EpochRecord, Failure, TeacherRecord, TeacherResult, TrialResult
from kdbench.status import Status
from kdbench.suite.plan import TeacherPlan, Trial


class TrialListener:
    """Forwards the events of learners to observers, as events of trials."""

    def __init__(self, trials: Mapping[str, Trial], notify: Notify, info: RunInfo) -> None:
        self.trials, self.notify, self.info = trials, notify, info

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        """An epoch ended."""
        self.notify("kdbench_epoch_finished", trial=self.trials[identifier], record=record, run=self.info)

    def finished(self, identifier: str, result: TrialResult | TeacherResult) -> None:
        """A trial finished or diverged."""
        trial = self.trials[identifier].with_status(result.status)
        self.notify("kdbench_trial_finished", trial=trial, result=result, run=self.info)

    def failed(self, identifier: str, error: Failure) -> None:
        """A trial failed."""
        trial = self.trials[identifier].with_status(Status.FAILED, error.reason)
        self.notify("kdbench_trial_failed", trial=trial, error=error, run=self.info)


class TeacherListener:
    """The same for a teacher; its failure and end are reported elsewhere."""

    def __init__(self, plan: TeacherPlan, notify: Notify, info: RunInfo) -> None:
        self.described, self.notify, self.info = TeacherRecord.of(plan), notify, info

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        """An epoch ended."""
        self.notify("kdbench_teacher_epoch_finished", teacher=self.described, record=record, run=self.info)

    def finished(self, identifier: str, result: TrialResult | TeacherResult) -> None:
        """Not forwarded: ``kdbench_teacher_finished`` is called after the weights are read back."""

    def failed(self, identifier: str, error: Failure) -> None:
        """Not forwarded: the trials that need this teacher are reported as failed."""
