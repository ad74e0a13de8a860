"""The Python API, and one invocation from plan to report."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from kdbench.claims import LEASE_SECONDS, claiming
from kdbench.discovery import Local
from kdbench.engine.device import choose_device, device_name
from kdbench.environment import describe_environment
from kdbench.errors import KdbenchError
from kdbench.hookspecs import RunInfo
from kdbench.observers.notify import Notifier
from kdbench.opening import open_suite
from kdbench.report import naming
from kdbench.results import SuiteFolder
from kdbench.run import fitting
from kdbench.run.context import Context
from kdbench.run.driver import Driver, files_only, find_executor, jobs_for
from kdbench.run.invocation import Invocation
from kdbench.run.job import Job
from kdbench.run.loop import Loop
from kdbench.run.outcome import Results
from kdbench.session import default_observers, registered, stop_at_signals
from kdbench.suite.filters import Filters, check_highlight
from kdbench.terminal import outliving_terminals

SHORTEST_LEASE = 1.0


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
    highlight: Sequence[str] = (),
    tracking_uri: str | None = None,
    fresh: bool = False,
    allow_teacher_mismatch: bool = False,
    grace: float | None = None,
    jobs: int | str = 1,
    executor: str | Mapping[str, Any] | None = None,
    parts: int | None = None,
    wait: bool = False,
    lease: float = LEASE_SECONDS,
    observers: Sequence[object] | None = None,
    warn: Callable[[str], None] | None = None,
    with_report: bool = True,
) -> Results:
    """Train the missing trials of a suite, and write its report.

    ``device`` is ``auto``, ``cpu``, ``cuda``, ``cuda:N``, or several separated by commas; ``jobs`` workers are started
    for each, as processes of their own if they are more than one (scripts then need ``if __name__ == "__main__"``);
    with ``"auto"``, as many as fit on a GPU by the memory that the suite's earlier trials needed, or one.
    ``executor`` names another place for workers, such as ``"ray"``, or is a mapping with its name and settings.
    Several runs, also of several machines, may train a suite in the same ``output`` folder: each worker claims the next
    free cohort, or 1/``parts`` of it, and a run returns when nothing is left to claim; with ``wait``, when nothing is
    left that another one trains. The last one writes the report. A worker without a sign of life for ``lease`` seconds
    is taken for dead, and others take over what it claimed.

    ``suite`` is a path, the name of a built-in suite, or a mapping with the keys of a suite file, in which
    paths are relative to the working folder. ``plugins`` are paths of plugin files and ``Method`` classes, which may
    be defined in a notebook; a class is registered under its attribute ``name``, or its class name in lower case.
    ``methods`` are globs on names or labels, ``pairs`` are ``teacher:student``, ``overrides`` are
    ``key.path=value``. With any of these, a separate report of the selected trials is written; ``report_name``
    sets its folder. ``highlight`` are labels that the report marks. ``tracking_uri`` is MLflow's store, ``"none"`` for
    no tracking. ``observers`` replaces the progress display and MLflow. Without ``with_report``, no report is written.
    SIGINT, SIGTERM or SIGHUP ends the run after its epoch, or after ``grace`` seconds at the last checkpoint, and
    ``Results.interrupted`` is then true; a second signal raises ``KeyboardInterrupt``. Signals are handled only in the
    main thread.
    Raises ``KdbenchError`` if the suite cannot be run; failed trials are in ``Results.failed``.
    """
    if grace is not None and not grace >= 0:
        raise KdbenchError(f"grace: must be at least 0 seconds, got {grace:g}")
    if not lease >= SHORTEST_LEASE:
        raise KdbenchError(f"lease: must be at least {SHORTEST_LEASE:g} seconds, got {lease:g}")
    for name, number in (("jobs", jobs), ("parts", parts)):
        if isinstance(number, int) and number < 1:
            raise KdbenchError(f"{name}: must be at least 1, got {number}")
    console = Console(stderr=True, emoji=False)
    warn = warn or partial(_warn, console)
    # Made absolute first: a plugin may change the working directory.
    output, report_dir = Path(output).absolute(), Path(report_dir).absolute()
    opened = open_suite(suite, overrides=overrides, plugins=plugins)
    filters = Filters(tuple(methods), tuple(pairs), tuple(seeds))
    filters.check(opened.suite)
    check_highlight(highlight, [trial.label for trial in opened.plan.trials if filters.match(trial)])
    names = device.split(",")
    if executor is None:
        # Of another executor's machines, nothing is known here.
        names = [str(choose_device(name)) for name in names]
    folder = SuiteFolder(output, opened.suite.name)
    workers = fitting.workers(jobs, names if executor is None else [], opened.plan, folder, warn)
    alone = executor is None and len(names) * workers == 1
    if not alone:
        files = files_only(opened)
        starter, per_cohort = find_executor(opened.registry, executor or "processes")
    chosen_device = torch.device(names[0] if alone else "cpu")
    chosen_name = None if report_name is None else naming.one_folder(report_name)
    report = report_dir / (chosen_name or naming.report_name(opened.report_name, (), filters))
    for broken in opened.registry.broken:
        warn(f"plugin {broken}")
    for remark in opened.remarks:
        warn(remark)
    if alone and chosen_device.type == "cuda":
        # Events and streams use the current device.
        torch.cuda.set_device(chosen_device)
    with outliving_terminals(), claiming(output, lease) as claims, stop_at_signals(grace, warn) as stop:
        folder.create()
        folder.remove_leftovers()
        folder.check_protocol()
        # The first of several processes must not open a GPU, which may belong to one process only.
        described = device_name(chosen_device) if alone else ", ".join(names)
        environment = {**describe_environment(), "device": described}
        info = RunInfo(
            invocation=f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
            output=folder.path,
            report=report,
            tracking_uri=tracking_uri,
            device=", ".join(names),
            environment=environment,
            chosen=frozenset(trial.id for trial in opened.plan.trials if filters.match(trial)),
        )
        standing = default_observers(tracking_uri, console, warn) if observers is None else observers
        with registered(standing, opened.registry, warn):
            notify = Notifier(opened.registry.manager, warn, stop.asked)
            adopts_from = info.chosen if fresh else None
            context = Context(opened, folder, info, chosen_device, notify, warn, stop, claims, adopts_from)
            if alone:
                loop = Loop(context, allow_teacher_mismatch=allow_teacher_mismatch, parts=parts or 1, wait=wait)
                return Invocation(context, loop, highlight, with_report=with_report)(filters, fresh=fresh)

            job = Job(
                suite=opened.given.absolute() if isinstance(opened.given, Path) else opened.given,
                overrides=opened.overrides,
                plugins=files,
                info=info,
                allow_teacher_mismatch=allow_teacher_mismatch,
                parts=parts,
                lease=lease,
                wait=wait,
                adopts_from=adopts_from,
                sign=claims.sign,
            )
            driver = Driver(starter, jobs_for(job, names, workers), context, per_cohort=per_cohort)
            return Invocation(context, driver, highlight, with_report=with_report)(filters, fresh=fresh)


def _warn(console: Console, message: str) -> None:
    # On the console of the progress display, which is redrawn below the message.
    console.print(f"[yellow]kdbench:[/] {escape(message)}", highlight=False, soft_wrap=True)
