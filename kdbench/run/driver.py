"""The first process of a run with several workers: starts them, and passes on what they tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdbench.engine.cohort import Interrupted
from kdbench.errors import KdbenchError
from kdbench.opening import Opened
from kdbench.results import Failure
from kdbench.results.state import with_results
from kdbench.run.context import Context
from kdbench.run.executors.base import Executor, Session
from kdbench.run.worker import ERROR, WARNING, Job
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


class Driver:
    """Runs workers by an executor."""

    def __init__(self, executor: Executor, jobs: Sequence[Job], context: Context) -> None:
        """``jobs`` do not know yet what is to be trained."""
        self._executor = executor
        self._jobs = jobs
        self._context = context
        self._errors: list[str] = []
        self._ready: set[str] = set()

    def __call__(self, chosen: frozenset[str], failures: Mapping[str, Failure | None]) -> None:
        """Train the ``chosen`` trials.

        Raises:
            KdbenchError: an error of a worker that concerns all of them.
            Interrupted: the user requested a stop while trials were left.
        """
        cohorts = self._open(chosen)
        if cohorts:
            parts = max(1, math.ceil(len(self._jobs) / cohorts))
            if parts > 1 and self._jobs[0].parts is None:
                few = f"{plural(cohorts, 'cohort')} for {len(self._jobs)} workers"
                self._context.warn(f"{few}: each is divided, as with --parts {parts}")
            jobs = [
                replace(job, chosen=chosen, failures=failures, parts=parts if job.parts is None else job.parts)
                for job in self._jobs
            ]
            stop = _Ending(self._context.stop, self._errors)
            self._executor(jobs, Session(self._hear, self._context.warn, stop))
        if self._errors:
            raise KdbenchError(self._errors[0])
        if self._context.stop.asked() and self._open(chosen):
            raise Interrupted("interrupted")

    def _open(self, chosen: frozenset[str]) -> int:
        """The number of cohorts with trials that are left."""
        plan = with_results(self._context.opened.plan, self._context.folder)
        left = {trial.id for trial in plan.trials if trial.id in chosen and trial.status in UNFINISHED}
        return sum(any(trial.id in left for trial in cohort.trials) for cohort in plan.cohorts)

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
