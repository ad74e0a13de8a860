"""One invocation, from the plan to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from kdbench.claims import HeldError, trials_of
from kdbench.engine.cohort import Interrupted
from kdbench.engine.progress import now
from kdbench.errors import KdbenchError, ResultsError
from kdbench.results import Failure, PlanRecord
from kdbench.results.state import with_results
from kdbench.run.context import Context
from kdbench.run.outcome import Results
from kdbench.run.reporting import write_report
from kdbench.run.work import failures_in
from kdbench.status import UNFINISHED, Status
from kdbench.suite.filters import Filters
from kdbench.suite.plan import Plan

REPORT_SECONDS = 0.5
"""Between two attempts to write the report, while another process writes it."""
Train = Callable[[frozenset[str], Mapping[str, Failure | None]], None]
"""Trains chosen trials, of which some failed before; raises :class:`Interrupted`."""


class Invocation:
    """Trains the cohorts, notifies observers, writes the report."""

    def __init__(
        self, context: Context, train: Train, highlight: Sequence[str] = (), *, with_report: bool = True
    ) -> None:
        """``highlight``: labels that the report marks; ``with_report``: whether one is written."""
        self.context = context
        self.highlight = tuple(highlight)
        self.train = train
        self.with_report = with_report
        self.kind = trials_of(context.folder.path.name)

    def __call__(self, filters: Filters, *, fresh: bool) -> Results:
        """Train what is missing of the selected trials; with ``fresh``, all of them."""
        chosen = self.context.info.chosen or frozenset()
        if fresh:
            self._clear(sorted(chosen))
        folder = self.context.folder
        plan = with_results(self.context.opened.plan, folder)
        self._remember(plan)
        self.context.notify("kdbench_suite_started", plan=plan, run=self.context.info)
        self._check_finished_teachers(plan, chosen)
        for trial in plan.trials:
            if trial.status is Status.SKIPPED and trial.id in chosen:
                self.context.notify("kdbench_trial_skipped", trial=trial, reason=trial.reason, run=self.context.info)
        try:
            self.train(chosen, failures_in(plan, folder))
        except Interrupted:
            return self._end(filters, interrupted=True)
        except Exception:
            with suppress(KdbenchError):
                self._end(filters, interrupted=True)
            raise
        return self._end(filters, interrupted=False)

    def _check_finished_teachers(self, plan: Plan, chosen: frozenset[str]) -> None:
        """Warn about finished teachers whose accuracy differs from the expected one."""
        asked = [trial for trial in plan.trials if trial.id in chosen]
        needed = {trial.teacher.key for trial in asked if trial.status in UNFINISHED}
        for teacher in plan.teachers:
            result = self.context.folder.teacher(teacher.key).result
            if result is None or teacher.key in needed or teacher.key not in {trial.teacher.key for trial in asked}:
                continue
            if message := teacher.mismatch(result.top1 or 0.0):
                self.context.warn(f"{message}; its students are trained already; correct teachers.{teacher.name}")

    def _clear(self, chosen: Sequence[str]) -> None:
        """Remove the earlier results of trials."""
        busy = self.context.claims.others(self.kind)
        for identifier in chosen:
            if not self.context.folder.trial(identifier).path.exists():
                continue
            try:
                claim = self.context.claims.claim(self.kind, identifier)
            except HeldError as held:
                raise ResultsError(
                    f"--fresh: {identifier} is being trained by {busy.get(identifier, held.holder)}; wait for it, or "
                    "stop it first"
                ) from None
            self.context.folder.trial(identifier, claim.check).clear()
            claim.release()

    def _end(self, filters: Filters, *, interrupted: bool) -> Results:
        plan = with_results(self.context.opened.plan, self.context.folder)
        self._remember(plan)
        record = self.context.opened.record(plan)
        others = self.context.claims.others(self.kind)
        if self.with_report and not others:
            self._report(record, filters)
        self.context.notify("kdbench_suite_finished", plan=plan, run=self.context.info, interrupted=interrupted)
        return Results(
            plan,
            self.context.folder,
            self.context.info.report,
            filters,
            interrupted,
            self.context.stop.signal,
            record,
            others,
        )

    def _report(self, record: PlanRecord, filters: Filters) -> None:
        """Write the report, one process after another: the last one sees the results of all."""
        kind = f"{self.context.folder.path.name}/report"
        while True:
            try:
                claim = self.context.claims.claim(kind, "report")
                break
            except HeldError:
                time.sleep(REPORT_SECONDS)
        try:
            folder, info, registry = self.context.folder, self.context.info, self.context.opened.registry
            write_report(folder, info.report, self.context.warn, record, filters, registry, self.highlight)
        finally:
            claim.release()

    def _remember(self, plan: Plan) -> None:
        last_run = {
            "report": self.context.opened.report_name,
            "environment": dict(self.context.info.environment),
            "updated": now(),
        }
        self.context.folder.write_plan(self.context.opened.record(plan).model_copy(update=last_run))
