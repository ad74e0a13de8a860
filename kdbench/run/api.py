"""The Python API, and one invocation from plan to report."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape

from kdbench.claims import LEASE_SECONDS, ClaimLostError, HeldError, Holder, claiming, listed, trials_of
from kdbench.discovery import Local, Registry
from kdbench.engine.cohort import Interrupted
from kdbench.engine.device import choose_device, device_name
from kdbench.engine.progress import now
from kdbench.environment import describe_environment
from kdbench.errors import KdbenchError, ResultsError, TrialError
from kdbench.hookspecs import RunInfo
from kdbench.observers.notify import Notifier
from kdbench.opening import open_suite
from kdbench.report import made_from, naming
from kdbench.report.parts import parts_of
from kdbench.results import NO_PLAN, PlanRecord, SuiteFolder
from kdbench.results.state import with_results
from kdbench.run.context import Context
from kdbench.run.students import CONCERNS_ALL, Students
from kdbench.run.teachers import Teachers
from kdbench.run.work import Work, died, failures_in
from kdbench.session import default_observers, registered, stop_at_signals
from kdbench.status import UNFINISHED, Status
from kdbench.suite.filters import Filters
from kdbench.suite.plan import Plan, TeacherPlan, Trial, count
from kdbench.terminal import outliving_terminals
from kdbench.words import plural

if TYPE_CHECKING:
    import pandas as pd

SHORTEST_LEASE = 1.0
POLL_SECONDS = 2.0
"""Between two looks for free trials."""


@dataclass(frozen=True)
class Results:
    """The results of a suite after a run."""

    plan: Plan
    folder: SuiteFolder
    report: Path
    filters: Filters
    interrupted: bool = False
    stopped_by: int | None = None
    """The number of the signal that interrupted the run."""
    record: PlanRecord | None = None
    """The plan's record for reports; by default that of the last run in the folder."""
    elsewhere: Mapping[str, Holder] = field(default_factory=dict)
    """The ids of trials that other processes were training at the end, with these processes."""

    @property
    def failed(self) -> list[Trial]:
        """Trials whose last attempt failed."""
        return [trial for trial in self.plan.trials if trial.status is Status.FAILED]

    @property
    def missing(self) -> list[Trial]:
        """Selected trials without an outcome, which no other process is training."""
        asked = (trial for trial in self.plan.trials if self.filters.match(trial) and trial.id not in self.elsewhere)
        return [trial for trial in asked if trial.status in UNFINISHED]

    def to_frame(self) -> pd.DataFrame:
        """One row per selected trial; accuracies in percent, times in seconds."""
        # Imported here: pandas and scipy take a second to import, and a finished suite does not need them.
        from kdbench.report import frame

        return frame.read_trials(self.folder, self.filters, self.record)

    def __repr__(self) -> str:
        asked = [trial for trial in self.plan.trials if self.filters.match(trial)]
        states = ", ".join(f"{number} {state}" for state, number in count(asked).items())
        return f"<Results of {self.plan.suite.name}: {states}; report: {self.report / 'index.html'}>"


def run_suite(
    suite: str | Path | Mapping[str, Any],
    *,
    methods: Sequence[str] = (),
    pairs: Sequence[str] = (),
    seeds: Sequence[int] = (),
    device: str = "auto",
    overrides: Sequence[str] = (),
    plugins: Sequence[Local] = (),
    output: str | Path = "runs",
    report_dir: str | Path = "reports",
    report_name: str | None = None,
    tracking_uri: str | None = None,
    fresh: bool = False,
    allow_teacher_mismatch: bool = False,
    grace: float | None = None,
    parts: int = 1,
    wait: bool = False,
    lease: float = LEASE_SECONDS,
    observers: Sequence[object] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Results:
    """Train the missing trials of a suite, and write its report.

    Several processes, also of several machines, may run a suite in the same ``output`` folder: each claims the next
    free cohort, or 1/``parts`` of it, and returns when nothing is left to claim; with ``wait``, when nothing is left
    that another one trains. The last one writes the report. A process without a sign of life for ``lease`` seconds
    is taken for dead, and others take over what it claimed.

    ``suite`` is a path, the name of a built-in suite, or a mapping with the keys of a suite file, in which
    paths are relative to the working folder. ``plugins`` are paths of plugin files and ``Method`` classes, which may
    be defined in a notebook; a class is registered under its attribute ``name``, or its class name in lower case.
    ``methods`` are globs on names or labels, ``pairs`` are ``teacher:student``, ``overrides`` are
    ``key.path=value``. With any of these, a separate report of the selected trials is written; ``report_name``
    sets its folder. ``tracking_uri`` is MLflow's store, ``"none"`` for no tracking. ``observers`` replaces the
    progress display and MLflow.
    SIGINT, SIGTERM or SIGHUP ends the run after its epoch, or after ``grace`` seconds at the last checkpoint, and
    ``Results.interrupted`` is then true; a second signal raises ``KeyboardInterrupt``. Signals are handled only in the
    main thread.
    Raises ``KdbenchError`` if the suite cannot be run; failed trials are in ``Results.failed``.
    """
    if grace is not None and not grace >= 0:
        raise KdbenchError(f"grace: must be at least 0 seconds, got {grace:g}")
    if not lease >= SHORTEST_LEASE:
        raise KdbenchError(f"lease: must be at least {SHORTEST_LEASE:g} seconds, got {lease:g}")
    if parts < 1:
        raise KdbenchError(f"parts: must be at least 1, got {parts}")
    console = Console(stderr=True, emoji=False)
    warn = warn or partial(_warn, console)
    # Made absolute first: a plugin may change the working directory.
    output, report_dir = Path(output).absolute(), Path(report_dir).absolute()
    opened = open_suite(suite, overrides=overrides, plugins=plugins)
    filters = Filters(tuple(methods), tuple(pairs), tuple(seeds))
    filters.check(opened.suite)
    chosen_device = choose_device(device)
    folder = SuiteFolder(output, opened.suite.name)
    chosen_name = None if report_name is None else naming.one_folder(report_name)
    report = report_dir / (chosen_name or naming.report_name(opened.report_name, (), filters))
    for broken in opened.registry.broken:
        warn(f"plugin {broken}")
    for remark in opened.remarks:
        warn(remark)
    if chosen_device.type == "cuda":
        # Events and streams use the current device.
        torch.cuda.set_device(chosen_device)
    with outliving_terminals(), claiming(output, lease) as claims, stop_at_signals(grace, warn) as stop:
        folder.create()
        folder.remove_leftovers()
        folder.check_protocol()
        environment = {**describe_environment(), "device": device_name(chosen_device)}
        info = RunInfo(
            invocation=f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
            output=folder.path,
            report=report,
            tracking_uri=tracking_uri,
            device=str(chosen_device),
            environment=environment,
            chosen=frozenset(trial.id for trial in opened.plan.trials if filters.match(trial)),
        )
        standing = default_observers(tracking_uri, console, warn) if observers is None else observers
        with registered(standing, opened.registry, warn):
            notify = Notifier(opened.registry.manager, warn, stop.asked)
            context = Context(opened, folder, info, chosen_device, notify, warn, stop, claims)
            run = _Invocation(context, allow_teacher_mismatch, parts, wait=wait)
            return run(filters, fresh=fresh)


class _Invocation:
    """Trains the cohorts, notifies observers, writes the report."""

    def __init__(self, context: Context, allow_teacher_mismatch: bool, parts: int, *, wait: bool) -> None:
        self.context = context
        self.teachers = Teachers(context, allow_teacher_mismatch)
        self.students = Students(context, self.teachers)
        self.parts = parts
        self.wait = wait
        self.kind = trials_of(context.folder.path.name)

    def __call__(self, filters: Filters, *, fresh: bool) -> Results:
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
            failures = failures_in(plan, folder)
            self._train_all(Work(self.context.claims, folder, chosen, failures, self._prepare, self.parts))
        except Interrupted:
            return self._end(filters, interrupted=True)
        except Exception:
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
        if busy := self.context.claims.others(self.kind).keys() & set(chosen):
            first = min(busy)
            raise ResultsError(
                f"--fresh: {first} is being trained by {self.context.claims.others(self.kind).get(first)}; "
                "wait for it, or stop it first"
            )
        for identifier in chosen:
            self.context.folder.trial(identifier).clear()

    def _train_all(self, work: Work) -> None:
        """Train one part after another, until nothing is left to claim."""
        said = False
        while True:
            plan = with_results(self.context.opened.plan, self.context.folder)
            if self.context.stop.asked() and work.open(plan):
                raise Interrupted("interrupted")
            if part := work.take(plan):
                said = False
                try:
                    if part.deaths:
                        self.students.fail(part, TrialError(died(part.deaths)))
                    else:
                        self.students.train(part, work.add)
                except ClaimLostError as error:
                    self.context.warn(f"{error}; this process leaves the cohort {part.cohort.name}")
                except HeldError:
                    pass  # its teacher is being retrained
                finally:
                    part.release()
            elif work.awaited or (self.wait and work.elsewhere):
                if not said:
                    self.context.warn(_waits_for(work))
                said = True
                time.sleep(POLL_SECONDS)
            elif work.contested:
                time.sleep(POLL_SECONDS / 4)
            else:
                return

    def _prepare(self, teacher: TeacherPlan) -> None:
        """Make a teacher available, unless another process trains it; its failure is told by the trials."""
        try:
            self.teachers(teacher)
        except (HeldError, *CONCERNS_ALL):
            raise
        except (Exception, SystemExit):  # noqa: BLE001, S110 - raised again where the trials are trained
            pass

    def _end(self, filters: Filters, *, interrupted: bool) -> Results:
        plan = with_results(self.context.opened.plan, self.context.folder)
        self._remember(plan)
        record = self.context.opened.record(plan)
        others = self.context.claims.others(self.kind)
        if not others:
            self._report(record, filters)
        self.context.notify("kdbench_suite_finished", plan=plan, run=self.context.info, interrupted=interrupted)
        return Results(
            plan,
            self.context.folder,
            self.context.info.report,
            filters,
            interrupted,
            self.context.stop.signal if interrupted else None,
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
                time.sleep(POLL_SECONDS / 4)
        try:
            folder, info, registry = self.context.folder, self.context.info, self.context.opened.registry
            write_report(folder, info.report, self.context.warn, record, filters, registry)
        finally:
            claim.release()

    def _remember(self, plan: Plan) -> None:
        last_run = {
            "report": self.context.opened.report_name,
            "environment": dict(self.context.info.environment),
            "updated": now(),
        }
        self.context.folder.write_plan(self.context.opened.record(plan).model_copy(update=last_run))


def _waits_for(work: Work) -> str:
    if work.awaited:
        return f"{listed(work.awaited)} trains teacher {' and '.join(work.awaited)}; waiting for it"
    return f"{plural(len(work.elsewhere), 'trial')} in training by {listed(work.elsewhere)}; waiting"


def write_report(
    folder: SuiteFolder,
    report: Path,
    warn: Callable[[str], None],
    plan: PlanRecord | None = None,
    filters: Filters | None = None,
    registry: Registry | None = None,
) -> None:
    """Render the report of the results so far, unless it is up to date. An error here does not affect the results."""
    filters = filters or Filters()
    try:
        parts = parts_of(plan or folder.plan or NO_PLAN, registry)
        if made_from.is_current(report, made_from.digest(folder, plan=plan, filters=filters.describe(), parts=parts)):
            return
        from kdbench.report.render import render

        render(
            folder,
            report,
            plan=plan,
            methods=filters.methods,
            pairs=filters.pairs,
            seeds=filters.seeds,
            parts=parts,
            warn=warn,
        )
    except Exception as error:  # noqa: BLE001 - hours of training must not end in a page's fault
        what = str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"
        warn(f"the report was not written: {what}; the results are saved; run kdbench report to write it")


def _warn(console: Console, message: str) -> None:
    # On the console of the progress display, which is redrawn below the message.
    console.print(f"[yellow]kdbench:[/] {escape(message)}", highlight=False, soft_wrap=True)
