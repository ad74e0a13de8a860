"""Logs to MLflow, during or after a run.

Training never waits: hooks only record which trial has changed; a separate thread imports MLflow, reads
the results folder and sends requests. It uses only ``MlflowClient``, not the fluent interface, because the
global active run may belong to the user's code.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from kdbench.errors import ResultsError, TrackingError
from kdbench.hookspecs import RunInfo, hookimpl
from kdbench.observers.entries import environment_tags
from kdbench.observers.mirror import Mirror, Run, SyncReport, Value, report_files
from kdbench.results import SuiteFolder, TrialRecord

if TYPE_CHECKING:
    from kdbench.suite.plan import Plan, Trial

DEFAULT_STORE = "sqlite:///mlflow.db"
# Waiting times at the end of a run: for one response, for all; and for all after an immediate abort.
PATIENCE_SECONDS = 30.0
CLOSING_SECONDS = 90.0
HURRIED_SECONDS = 5.0
CREATION_SECONDS = 60.0
"""Time limit for another process to create the tables of a SQLite file."""

# MLflow accepts 100 parameters, 100 tags and 1000 entries in total per request (mlflow.utils.validation).
METRICS_PER_REQUEST = 800
ENTRIES_PER_REQUEST = 100
UPLOADS_AT_ONCE = 4


def store_uri(*named: str | None) -> str:
    """The first given store, otherwise ``MLFLOW_TRACKING_URI``, otherwise a local SQLite file."""
    uri = next(filter(None, (*named, os.environ.get("MLFLOW_TRACKING_URI"))), DEFAULT_STORE)
    scheme, separator, path = uri.partition(":///")
    if scheme.startswith("sqlite") and path and path != ":memory:":
        # MLflow caches stores by their address, and would use the wrong file after a change of folder.
        return f"{scheme}{separator}{Path(path).absolute()}"
    return uri


def without_password(text: str) -> str:
    """Text with users and passwords removed from addresses."""
    return re.sub(r"//[^/\s@]*@", "//", text)


def connect(uri: str) -> Any:
    """An ``MlflowClient`` with short timeouts and without log output; the import takes seconds.

    Existing environment variables take precedence.
    """
    settings = {
        # With MLflow's defaults, 7 retries of 120 seconds, it takes minutes to detect a dead server.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # MLflow's database models cause this warning with SQLAlchemy 2.1. A context manager would not be thread-safe.
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # MLflow prints the traceback of each database error in addition to raising it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # Older releases reset Alembic's levels while they create the tables, but not its filters.
    logging.getLogger("alembic.runtime.migration").addFilter(_is_warning)
    with _only_creator(uri):
        return MlflowClient(tracking_uri=uri)


@contextmanager
def _only_creator(uri: str) -> Iterator[None]:
    """Let only one process create the tables of a SQLite file: MLflow fails if two do so at the same time."""
    if not uri.startswith("sqlite"):
        yield
        return
    # Not next to the file, where it would never be removed.
    name = f"kdbench-mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    lock = FileLock(Path(tempfile.gettempdir()) / name)
    with suppress(OSError, Timeout):  # without the lock, a conflict is still unlikely
        lock.acquire(timeout=CREATION_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


class MlflowStore:
    """An MLflow store as :class:`kdbench.observers.mirror.Store`.

    ``answers`` counts the calls that returned, to distinguish a slow server from a dead one. After ``given_up``
    is set, every call raises ``TrackingError``.
    """

    def __init__(self, client: Any, given_up: threading.Event | None = None) -> None:
        self._client = client
        self._given_up = given_up or threading.Event()
        self._artifacts: dict[str, str] = {}
        self.answers = 0

    def _ask(self, call: str, *arguments: Any, **options: Any) -> Any:
        return self._answer(getattr(self._client, call), *arguments, **options)

    def _answer(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self._given_up.is_set():
            raise TrackingError("given up")
        answer = function(*arguments, **options)
        self.answers += 1
        return answer

    def experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """The id of an experiment, which is created if missing; missing ``tags`` are added."""
        found = self._ask("get_experiment_by_name", name)
        if found is None:
            try:
                return self._identifier(self._ask("create_experiment", name, tags=dict(tags)))
            except Exception:
                # Another process may have created it, or this one repeated a request after a lost response.
                found = self._ask("get_experiment_by_name", name)
                if found is None:
                    raise
        self._identifier(found.experiment_id)
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment '{name}' was deleted; restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        for key, value in tags.items():
            if key not in found.tags:
                self._ask("set_experiment_tag", found.experiment_id, key, value)
        return str(found.experiment_id)

    def runs(self, experiment: str) -> Iterator[Run]:
        """All runs except deleted ones."""
        token: str | None = None
        while True:
            page = self._ask("search_runs", [experiment], max_results=1000, page_token=token)
            for run in page:
                info, data = run.info, run.data
                self._artifacts[info.run_id] = info.artifact_uri
                # The metrics dictionary of MLflow's entities has no steps.
                latest = {metric.key: (metric.step, metric.value) for metric in data.to_proto().metrics}
                yield Run(info.run_id, info.start_time, info.status, dict(data.tags), set(data.params), latest)
            token = page.token
            if not token:
                return

    def create_run(self, experiment: str, started: int, tags: Mapping[str, str]) -> str:
        """Create a run with status ``RUNNING``, and return its id."""
        info = self._ask("create_run", experiment, start_time=started, tags=tags).info
        self._artifacts[info.run_id] = info.artifact_uri
        return self._identifier(info.run_id)

    def log(self, run: str, values: Sequence[Value], parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Store entries, in one request if they are few; tags are sent in order."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(value.name, value.value, value.timestamp, value.step) for value in values]
        params = [Param(name, text) for name, text in parameters.items()]
        run_tags = [RunTag(name, text) for name, text in tags.items()]
        while metrics or params or run_tags:
            rest = len(metrics) > METRICS_PER_REQUEST or len(params) > ENTRIES_PER_REQUEST
            now = [] if rest else run_tags[:ENTRIES_PER_REQUEST]
            self._ask(
                "log_batch", run, metrics[:METRICS_PER_REQUEST], params[:ENTRIES_PER_REQUEST], now, synchronous=True
            )
            del metrics[:METRICS_PER_REQUEST], params[:ENTRIES_PER_REQUEST], run_tags[: len(now)]

    def upload(self, run: str, files: Sequence[tuple[Path, str]]) -> None:
        """Upload files in parallel, each to a folder within the run's artifacts."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        # Not with the client, which requests the run for each file; its older releases use another server.
        repository = get_artifact_repository(self._artifacts[run], tracking_uri=self._client.tracking_uri)
        with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
            sent = [pool.submit(self._answer, repository.log_artifact, str(f), place or None) for f, place in files]
        for upload, (path, _) in zip(sent, files, strict=True):
            try:
                upload.result()
            except Exception:
                # Another process may replace a report, or retrain a trial, during the upload.
                if os.path.lexists(path):
                    raise

    @staticmethod
    def _identifier(answer: Any) -> str:
        if not answer:
            raise TrackingError("the server's response contains no id; is it an MLflow server?")
        return str(answer)

    def reopen(self, run: str) -> None:
        """Set the status of an ended run to ``RUNNING``."""
        self._ask("update_run", run, status="RUNNING")

    def end(self, run: str, status: str, ended: int | None = None) -> None:
        """Set a run's status to ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._ask("set_terminated", run, status=status, end_time=ended)


class MlflowObserver:
    """Logs a run while it is in progress.

    The store is ``tracking_uri``, otherwise that of the run, otherwise that of the environment, otherwise a local
    SQLite file. ``warn`` is called at most twice: when MLflow fails (from another thread), and at the end. After a
    failure nothing more is sent, and :func:`sync` sends the missing data. ``connect`` makes the client, in the thread
    that uses it.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        warn: Callable[[str], None] = warnings.warn,
        connect: Callable[[str], Any] = connect,
    ) -> None:
        self._tracking_uri = tracking_uri
        self._warn = warn
        self._connect = connect
        self._plan: Plan | None = None
        self._run: RunInfo | None = None
        self._interrupted = True
        self._ended = False
        # A trial is in the queue at most once, which limits its size: several changes of a trial are sent
        # together, so nothing is dropped if the server is slow.
        self._queue: SimpleQueue[Trial | None] = SimpleQueue()
        self._queued: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._store: MlflowStore | None = None
        self._failed = threading.Event()
        self._connected = threading.Event()

    @hookimpl
    def kdbench_suite_started(self, plan: Plan, run: RunInfo) -> None:
        """Store the run's facts; nothing is sent before a trial begins."""
        self._plan, self._run = plan, run

    @hookimpl
    def kdbench_trial_started(self, trial: Trial) -> None:
        """Queue the trial."""
        self._changed(trial)

    @hookimpl
    def kdbench_epoch_finished(self, trial: Trial) -> None:
        """Queue the trial."""
        self._changed(trial)

    @hookimpl
    def kdbench_trial_finished(self, trial: Trial) -> None:
        """Queue the trial."""
        self._changed(trial)

    @hookimpl
    def kdbench_trial_failed(self, trial: Trial) -> None:
        """Queue the trial."""
        self._changed(trial)

    @hookimpl
    def kdbench_suite_finished(self, interrupted: bool) -> None:
        """Send the remaining data and the report."""
        self._interrupted, self._ended = interrupted, True
        self.close()

    def close(self) -> None:
        """Wait for a limited time until everything is sent, while MLflow responds. May be called again."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        self._queue.put(None)
        limit = CLOSING_SECONDS if self._ended else HURRIED_SECONDS
        deadline = time.monotonic() + limit
        # The import of MLflow and the opening of a store may take longer than a response.
        self._connected.wait(limit)
        while thread.is_alive() and not self._failed.is_set():
            answers, left = self._answers, deadline - time.monotonic()
            thread.join(max(0.0, min(PATIENCE_SECONDS, left)))
            if thread.is_alive() and left <= PATIENCE_SECONDS:
                self._fail(f"did not accept all data within {limit:g} seconds")
            elif thread.is_alive() and self._answers == answers:
                self._fail(f"did not respond for {PATIENCE_SECONDS:g} seconds")
        if self._failed.is_set() and self._run is not None:
            self._warn(f"MLflow does not have all data of this run; to send it: {sync_command(self._run, self._uri)}")

    def _changed(self, trial: Trial) -> None:
        if self._failed.is_set() or self._plan is None or self._run is None:
            return
        with self._lock:
            if trial.id in self._queued:
                return
            self._queued.add(trial.id)
        self._queue.put(trial)
        if self._thread is None:
            work = (self._plan, self._run)
            self._thread = threading.Thread(target=self._work, args=work, name="kdbench-mlflow", daemon=True)
            self._thread.start()

    @property
    def _uri(self) -> str:
        return store_uri(self._tracking_uri, self._run.tracking_uri if self._run else None)

    @property
    def _answers(self) -> int:
        return 0 if self._store is None else self._store.answers

    def _fail(self, reason: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            self._warn(without_password(f"MLflow at {self._uri} {reason}; this run continues without it"))

    def _work(self, plan: Plan, run: RunInfo) -> None:
        try:
            self._mirror(plan, run)
        except Exception as error:  # noqa: BLE001 - whatever MLflow and its store raise must not cost a trial
            self._fail(f"fails ({_one_line(error)})")
        finally:
            self._connected.set()

    def _mirror(self, plan: Plan, run: RunInfo) -> None:
        self._store = MlflowStore(self._connect(self._uri), self._failed)
        self._connected.set()
        mirror = Mirror(self._store, plan.suite.name, plan.suite.question)
        folder = SuiteFolder(run.output.parent, run.output.name)
        tags = environment_tags(run.environment)

        def parent() -> str:
            return mirror.open_parent(run.invocation, tags)

        seen: dict[str, Trial] = {}
        while (trial := self._queue.get()) is not None:
            with self._lock:
                self._queued.discard(trial.id)
            seen[trial.id] = trial
            mirror.mirror(folder.trial(trial.id), TrialRecord.of(trial), run.environment, parent)
        for trial in seen.values():
            mirror.mirror(folder.trial(trial.id), TrialRecord.of(trial), run.environment, parent, unfinished="KILLED")
        mirror.close_parents(report_files(folder.path, run.report), interrupted=self._interrupted)


def sync_command(run: RunInfo, uri: str) -> str:
    """The command line that sends a run's results to the store at ``uri``, quoted for a shell.

    Paths are absolute, so that it works in any folder. A password in ``uri`` is left out.
    """
    folders = ["--output", str(run.output.parent.absolute()), "--report-dir", str(run.report.parent.absolute())]
    return shlex.join(["kdbench", "mlflow", "sync", run.output.name, *folders, "--tracking-uri", without_password(uri)])


def sync(
    folder: SuiteFolder, suite_name: str, tracking_uri: str | None = None, report: Path | None = None
) -> SyncReport:
    """Send the data of all finished trials of a results folder that MLflow does not have. Can be repeated.

    Also ends the runs of failed trials and of invocations that died; the latter get the ``report`` folder. Raises
    TrackingError if MLflow fails; the data sent so far are kept, and the next call sends the rest.
    """
    uri = store_uri(tracking_uri)
    try:
        plan = folder.plan
        mirror = Mirror(MlflowStore(connect(uri)), suite_name, plan.suite.get("question", "") if plan else "")
        names = {row.id: row for row in plan.trials} if plan else {}
        for trial_folder in folder:
            trial = trial_folder.description
            if trial is None:
                continue
            # The suite's current names, not those at the time of training.
            if now := names.get(trial.id):
                trial = trial.model_copy(update={"label": now.label, "teacher": now.teacher})
            if trial_folder.result is not None:
                mirror.report.finished += 1
            elif trial_folder.damage():
                mirror.report.damaged += 1
                continue
            elif trial_folder.error is None or not mirror.knows(trial.id):
                continue
            mirror.mirror(trial_folder, trial, {}, lambda: mirror.open_parent("sync", {}))
        mirror.close_parents(report_files(folder.path, report))
    except (TrackingError, ResultsError):
        raise
    except Exception as error:
        message = f"MLflow at {uri} fails ({_one_line(error)}); run the command again to send the rest"
        raise TrackingError(without_password(message)) from error
    return mirror.report


def _one_line(error: BaseException) -> str:
    """A short description of an error: the operating system's message, if there is one."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
