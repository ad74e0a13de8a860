"""The first process of a run with several workers: starts them, and passes on what they tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdbench.discovery import Registry
from kdbench.discovery import settings as settings_of
from kdbench.engine.cohort import Interrupted
from kdbench.errors import KdbenchError, SuiteError
from kdbench.hookspecs import ExecutorSpec
from kdbench.opening import Opened
from kdbench.results import Failure
from kdbench.results.equivalent import equivalents, later
from kdbench.results.state import with_results
from kdbench.run.context import Context
from kdbench.run.executor import Executor, Session
from kdbench.run.job import ERROR, WARNING, Job
from kdbench.session import Stop
from kdbench.status import UNFINISHED
from kdbench.words import plural


def jobs_for(job: Job, devices: Sequence[str], per_device: int) -> list[Job]:
    """One job for each worker: ``job`` with a number, a device, and its share of the processor's cores."""
    workers = [device for device in devices for _ in range(per_device)]
    on_cpu = workers.count("cpu")
    threads = max(1, torch.get_num_threads() // on_cpu) if on_cpu else None
    return [
        replace(job, number=number, device=device, threads=threads if device == "cpu" else None)
        for number, device in enumerate(workers, 1)
    ]


def files_only(opened: Opened) -> tuple[str, ...]:
    """The plugins given beside those of the suite, which workers load from their files.

    Raises :class:`KdbenchError` for a class: another process has no cell of a notebook.
    """
    classes = [plugin.__name__ for plugin in opened.plugins if isinstance(plugin, type)]
    if classes:
        raise KdbenchError(
            f"several workers need plugins in files, and {classes[0]} is a class of this process; write it to a file "
            "(plugins=['my_loss.py']), or use one worker"
        )
    return tuple(str(Path(plugin).absolute()) for plugin in opened.plugins if isinstance(plugin, str | Path))


def find_executor(registry: Registry, given: str | Mapping[str, Any]) -> tuple[Executor, bool]:
    """An executor by its name, or by a mapping with its name and settings; and whether it gets a job for each cohort.

    Raises:
        PluginError: there is none of this name.
        SuiteError: a setting is wrong.
    """
    settings = {"name": given} if isinstance(given, str) else dict(given)
    offer = registry.find(ExecutorSpec, str(settings.pop("name", "")))
    target = offer.load()
    resolved, problems = settings_of.resolve(target, {**offer.spec.presets, **settings}, frozenset())
    if problems:
        raise SuiteError([f"executor.{key}: {what}" for key, what in problems])
    return target(**resolved), offer.spec.per_cohort


class Driver:
    """Runs workers by an executor."""

    def __init__(self, executor: Executor, jobs: Sequence[Job], context: Context, *, per_cohort: bool = False) -> None:
        """``jobs`` do not know yet what is to be trained. With ``per_cohort``, each cohort gets a copy of the first."""
        self._executor = executor
        self._jobs = jobs
        self._per_cohort = per_cohort
        self._context = context
        self._errors: list[str] = []
        self._ready: set[str] = set()

    def __call__(self, chosen: frozenset[str], failures: Mapping[str, Failure | None]) -> None:
        """Train the ``chosen`` trials.

        Raises:
            KdbenchError: an error of a worker that concerns all of them.
            Interrupted: the user requested a stop while trials were left.
        """
        left = chosen
        while cohorts := self._open(left):
            # A job cannot wait for what another job trains: that one may start when this one has ended.
            waiting = self._waiting(left) if self._per_cohort else frozenset()
            if waiting:
                cohorts = self._open(left - waiting)
            jobs = self._jobs_for_cohorts(cohorts) if self._per_cohort else self._jobs_for_workers(cohorts, chosen)
            jobs = [replace(job, failures=failures) for job in jobs]
            stop = _Ending(self._context.stop, self._errors)
            self._executor(jobs, Session(self._hear, self._context.warn, stop))
            if not waiting or self._errors or self._context.stop.asked():
                break
            left = waiting
        if self._errors:
            raise KdbenchError(self._errors[0])
        if self._context.stop.asked() and self._open(chosen):
            raise Interrupted("interrupted")

    def _open(self, chosen: frozenset[str]) -> list[tuple[str, list[str]]]:
        """The trials that are left, for each cohort, with the key of its teacher."""
        plan = with_results(self._context.opened.plan, self._context.folder)
        left = {trial.id for trial in plan.trials if trial.id in chosen and trial.status in UNFINISHED}
        cohorts = [(one.teacher.key, [trial.id for trial in one.trials if trial.id in left]) for one in plan.cohorts]
        return [cohort for cohort in cohorts if cohort[1]]

    def _waiting(self, chosen: frozenset[str]) -> frozenset[str]:
        """The trials that adopt the result of another one that is still to be trained."""
        folder = self._context.folder
        plan = with_results(self._context.opened.plan, folder)
        left = [trial for trial in plan.trials if trial.id in chosen and trial.status in UNFINISHED]
        allowed = self._context.adopts_from
        usable = lambda _, result: allowed is None or result.id in allowed  # noqa: E731
        done = equivalents(folder, {trial.training for trial in left if trial.training}, usable)
        return frozenset(later(left, folder, done))

    def _jobs_for_workers(self, cohorts: Sequence[object], chosen: frozenset[str]) -> list[Job]:
        """The given jobs: each worker takes what it can claim."""
        parts = self._jobs[0].parts
        if parts is None:
            parts = math.ceil(len(self._jobs) / len(cohorts))
            if parts > 1:
                few = f"{plural(len(cohorts), 'cohort')} for {len(self._jobs)} workers"
                self._context.warn(f"{few}: each is divided, as with --parts {parts}")
        return [replace(job, chosen=chosen, parts=parts) for job in self._jobs]

    def _jobs_for_cohorts(self, cohorts: Sequence[tuple[str, list[str]]]) -> list[Job]:
        """A job for each part of a cohort."""
        one = self._jobs[0]
        parts = one.parts or 1
        trainings = {trial.id: trial.training for trial in self._context.opened.plan.trials if trial.training}
        found = [
            replace(one, chosen=frozenset(ids[start::parts]), parts=1, teacher=teacher, trainings=trainings)
            for teacher, ids in cohorts
            for start in range(min(parts, len(ids)))
        ]
        return [replace(job, number=number) for number, job in enumerate(found, 1)]

    def _hear(self, job: Job, name: str, arguments: Mapping[str, Any]) -> None:
        if name == WARNING:
            self._context.warn(f"worker {job.number}: {arguments['text']}")
        elif name == ERROR:
            # The others end after their epochs, as after Ctrl-C.
            self._errors.append(str(arguments["text"]))
        elif not self._is_known(name, arguments):
            self._context.notify(name, **arguments)

    def _is_known(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Whether another worker has told that a teacher is ready."""
        if name == "kdbench_teacher_started":
            self._ready.discard(arguments["teacher"].key)
        if name != "kdbench_teacher_finished":
            return False
        known = arguments["teacher"].key in self._ready
        self._ready.add(arguments["teacher"].key)
        return known


class _Ending(Stop):
    """A stop that the user requested, or that an error of a worker requires."""

    def __init__(self, stop: Stop, errors: Sequence[str]) -> None:
        super().__init__()
        self._by_user, self._errors = stop, errors

    def asked(self) -> bool:
        return bool(self._errors) or self._by_user.asked()

    def overdue(self) -> bool:
        return self._by_user.overdue()
