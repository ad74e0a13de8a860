"""One of several processes of a run: trains what it can claim, and tells the process that started it.

The results are in the folder; what is told serves the display, MLflow and the messages of the first process.
"""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kdbench.claims import claiming
from kdbench.engine.cohort import Interrupted
from kdbench.engine.device import choose_device, device_name
from kdbench.environment import describe_environment
from kdbench.errors import DeviceLostError, KdbenchError, ResultsError
from kdbench.opening import open_suite
from kdbench.results import SuiteFolder
from kdbench.run.context import Context
from kdbench.run.job import ERROR, WARNING, Job, Orders, Tell
from kdbench.run.loop import Loop
from kdbench.run.remote import Server, on_a_copy


def work(job: Job, tell: Tell, orders: Orders, *, only_teacher: bool = False, server: Server | None = None) -> None:
    """Train until nothing is left to claim, or until ``orders`` end it; with ``only_teacher``, no students.

    ``server``: where the results go if this process does not see their folder. It must be a job for one cohort then.
    """
    train = partial(_work, only_teacher=only_teacher)
    if server is None or job.sees_results():
        train(job, tell, orders)
    else:
        on_a_copy(job, tell, orders, train, server, only_teacher=only_teacher)


def _work(job: Job, tell: Tell, orders: Orders, *, only_teacher: bool) -> None:
    def say(name: str, /, **arguments: Any) -> None:
        try:
            tell(name, **arguments)
        except (OSError, EOFError):
            orders.leave()

    try:
        _train(job, say, orders, only_teacher=only_teacher)
    except Interrupted:
        pass
    except DeviceLostError as error:
        say(WARNING, text=str(error))
        # A new process may use the device again.
        raise SystemExit(1) from error
    except KdbenchError as error:
        say(ERROR, text=str(error))


def _train(job: Job, say: Tell, orders: Orders, *, only_teacher: bool) -> None:
    try:
        os.chdir(job.folder)
    except OSError as error:
        raise ResultsError(f"{job.folder}: a worker on {platform.node()} cannot use it: {error.strerror}") from error
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    device = choose_device(job.device)
    if device.type == "cuda":
        # Events and streams use the current device.
        torch.cuda.set_device(device)
    opened = open_suite(job.suite, overrides=job.overrides, plugins=job.plugins)
    output = job.info.output.parent
    environment = {**describe_environment(), "device": device_name(device)}
    info = replace(job.info, device=str(device), environment=environment, chosen=job.chosen, worker=job.number)
    folder = SuiteFolder(output, job.info.output.name)
    if not job.sees_results():
        where = f"a worker on {platform.node()}"
        raise ResultsError(f"{folder.path}: {where} does not find it; use an --output on a shared file system")
    with claiming(output, job.lease) as claims:
        warn = lambda text: say(WARNING, text=text)  # noqa: E731
        context = Context(opened, folder, info, device, say, warn, orders, claims, job.adopts_from)
        loop = Loop(context, allow_teacher_mismatch=job.allow_teacher_mismatch, parts=job.parts or 1, wait=job.wait)
        if only_teacher:
            loop.obtain(job.teacher, job.failures)
        else:
            loop(job.chosen, job.failures)
