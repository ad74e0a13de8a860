"""Workers as tasks of a Ray cluster: one for each cohort, after one for its teacher.

Claims make the tasks idempotent, so that Ray may run a task again when its node has died.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from kdbench.errors import KdbenchError
from kdbench.method import Positive
from kdbench.run.executor import Session
from kdbench.run.job import Job, Orders
from kdbench.run.remote import Content, Loan, ResultsServer
from kdbench.run.worker import work

POLL_SECONDS = 0.5
MESSAGES_AT_ONCE = 100
"""Then a requested stop is passed on, before more are listened to."""
RETRIES = 16
"""So often a task whose node or process has died is started again: a trial that kills is found after some halvings."""
PATIENCE_SECONDS = 30.0
"""Time in which all messages of ended tasks arrive."""


class RayTasks:
    """One Ray task for each cohort, and for each teacher before its cohorts."""

    def __init__(
        self, *, address: str = "auto", gpus: float = -1.0, cpus: Positive = 1.0, shared_folder: bool = True
    ) -> None:
        """Connect to a cluster, or start one on this machine.

        Args:
            address: ``auto`` for the cluster that this machine belongs to, ``local`` for a new one on this machine,
                or as ``ray.init`` takes it.
            gpus: how many a task reserves; a fraction lets several tasks share one. By default 1 if the cluster has
                any, otherwise 0.
            cpus: how many cores a task reserves.
            shared_folder: whether tasks use the results folder themselves where they see it. Otherwise they train in
                temporary folders, and the files are sent to the first process after each epoch.
        """
        try:
            import ray  # noqa: F401 - before anything else is done
        except ImportError as error:
            raise KdbenchError("the executor ray needs Ray: pip install 'kdbench[ray]'") from error
        self._address = address
        self._gpus = gpus
        self._cpus = cpus
        self._shared_folder = shared_folder

    def __call__(self, jobs: Sequence[Job], session: Session) -> None:
        """Run all jobs; see :class:`~kdbench.run.executor.Executor`."""
        with _connected(self._address) as ray:
            self._run(ray, jobs, session)

    def _run(self, ray: Any, jobs: Sequence[Job], session: Session) -> None:
        from ray.util.queue import Empty, Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On this machine, whose end is the end of the run anyway.
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        here = {"num_cpus": 0, "scheduling_strategy": node}
        messages = Queue(actor_options=here)
        flags = ray.remote(**here)(_Flags).remote()
        results = ray.remote(**here)(ResultsServer).remote(jobs[0].info.output, jobs[0].lease)
        if not self._shared_folder:
            jobs = [replace(job, sign=Path(os.devnull)) for job in jobs]
        gpus = self._gpus if self._gpus >= 0 else float(bool(ray.cluster_resources().get("GPU")))
        task = ray.remote(num_cpus=self._cpus, num_gpus=gpus, max_retries=RETRIES)(_task)

        def listen() -> None:
            with suppress(Empty):
                for _ in range(MESSAGES_AT_ONCE):
                    number, name, arguments = messages.get_nowait()
                    session.hear(jobs[number - 1], name, arguments)

        before: dict[str, Any] = {}
        running: dict[Any, Job] = {}
        told = (False, False)
        try:
            for job in jobs:
                if job.teacher and job.teacher not in before:
                    before[job.teacher] = task.remote(job, True, None, messages, flags, results)
                    running[before[job.teacher]] = job
                running[task.remote(job, False, before.get(job.teacher), messages, flags, results)] = job
            while running:
                listen()
                now = (session.stop.asked(), session.stop.overdue())
                if now != told:
                    ray.get(flags.set.remote(*now))
                    told = now
                for ended in ray.wait(list(running), num_returns=len(running), timeout=POLL_SECONDS)[0]:
                    job = running.pop(ended)
                    try:
                        ray.get(ended)
                    except ray.exceptions.RayError as error:
                        session.warn(f"task {job.number} was given up: {_first_line(error)}")
            _wait_for(messages, listen)
        finally:
            for one in running:
                ray.cancel(one, force=True)
            with suppress(ray.exceptions.RayError):
                ray.get(results.close.remote())


class _Flags:
    """What the first process has decided; an actor."""

    def __init__(self) -> None:
        self._stop = self._overdue = False

    def set(self, stop: bool, overdue: bool) -> None:
        self._stop, self._overdue = stop, overdue

    def get(self) -> tuple[bool, bool]:
        return self._stop, self._overdue


class _Server:
    """The server of results, which is an actor; see :class:`~kdbench.run.remote.Server`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def lend(self, job: Job, only_teacher: bool) -> Loan | None:
        return cast("Loan | None", self._answer(self._actor.lend.remote(job, only_teacher)))

    def take(self, loan: int, name: str, content: Content | None) -> None:
        self._answer(self._actor.take.remote(loan, name, content))

    def end(self, loan: int) -> None:
        self._answer(self._actor.end.remote(loan))

    def _answer(self, asked: Any) -> Any:
        import ray

        try:
            return ray.get(asked)
        except ray.exceptions.RayTaskError as error:
            # What the method raised; Ray's own error has the traceback as its text.
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise EOFError("the first process has ended") from error


def _task(job: Job, only_teacher: bool, after: None, messages: Any, flags: Any, results: Any) -> None:
    """Train a cohort, or only its teacher; ``after`` is the result of the teacher's task, for which Ray waits."""
    import ray

    looked, seen = -POLL_SECONDS, (False, False)

    def look() -> tuple[bool, bool]:
        nonlocal looked, seen
        if time.monotonic() - looked >= POLL_SECONDS:
            try:
                seen = ray.get(flags.get.remote())
            except ray.exceptions.RayError:
                seen = (True, False)  # the first process has ended
            looked = time.monotonic()
        return seen

    def tell(name: str, /, **arguments: Any) -> None:
        try:
            messages.put((job.number, name, arguments))
        except ray.exceptions.RayError as error:
            raise EOFError("the first process has ended") from error

    orders = Orders(lambda: look()[0], lambda: look()[1])
    work(job, tell, orders, only_teacher=only_teacher, server=_Server(results))


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    import ray

    mine = not ray.is_initialized()
    if mine:
        # Ray shows the output of all tasks otherwise; what matters arrives as messages.
        options = {"log_to_driver": False, "include_dashboard": False}
        try:
            if address == "local":
                ray.init("local", **options)
            else:
                ray.init(address, log_to_driver=False)
        except ConnectionError as error:
            raise KdbenchError(
                f"no Ray cluster at '{address}': {_first_line(error)}; start one with `ray start --head`, or use the "
                "address local"
            ) from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _wait_for(messages: Any, listen: Callable[[], None]) -> None:
    """Listen until no message is left."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    listen()
    while not messages.empty() and time.monotonic() < deadline:
        listen()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
