"""What the tests of observers share: a run without training, and a store in memory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pluggy
import pytest

import kdbench.hookspecs
from kdbench.hookspecs import RunInfo
from kdbench.observers.mirror import Run, Value
from kdbench.recipe import Recipe
from kdbench.results import EpochRecord, Failure, PlanRecord, SuiteFolder, TrialRecord
from kdbench.status import Status
from kdbench.suite.plan import Origin, Plan, TeacherPlan, Trial
from kdbench.suite.schema import Suite

DEADLINE_SECONDS = 180.0

ENVIRONMENT = {
    "kdbench": "0.1.0",
    "torch": "2.11.0",
    "python": "3.11.7",
    "device": "cpu",
    "git_commit": "abc123",
    "precision": "float32",
}


def make_trial(
    label: str = "kd", student: str = "resnet8", seed: int = 0, epochs: int = 4, status: str = "pending"
) -> Trial:
    recipe = Recipe(epochs=epochs)
    teacher = TeacherPlan("resnet20", "resnet20", {"name": "digits"}, recipe, None, None, 0)
    return Trial(
        suite="tiny",
        data={"name": "digits", "train_limit": None},
        teacher=teacher,
        student=student,
        method=label,
        label=label,
        seed=seed,
        settings={"temperature": 4.0, "taps": ["stage1", "stage2"]},
        recipe=recipe,
        origin=Origin("kdbench", "0.1.0", "kdbench 0.1.0"),
        status=Status(status),
    )


def make_plan(trials: Sequence[Trial]) -> Plan:
    suite = Suite.model_validate(
        {
            "name": "tiny",
            "question": "Does it log?",
            "data": {"name": "digits"},
            "recipe": {"epochs": trials[0].recipe.epochs},
            "pairs": [{"teacher": "resnet20", "student": s} for s in {t.student: 0 for t in trials}],
            "methods": [{"name": label} for label in {t.label: 0 for t in trials}],
            "seeds": sorted({t.seed for t in trials}),
        }
    )
    return Plan(suite, tuple(trials))


class PretendedRun:
    """Does to the results folder and to observers what a run does, but trains nothing."""

    def __init__(self, folder: Path, trials: Sequence[Trial], *observers: object) -> None:
        self.plan = make_plan(trials)
        self.folder = SuiteFolder(folder / "runs", "tiny")
        self.info = RunInfo(
            invocation="20260101T000000Z-abcdef",
            output=self.folder.path,
            report=folder / "reports" / "tiny",
            tracking_uri=None,
            device="cpu",
            environment=ENVIRONMENT,
        )
        manager = pluggy.PluginManager("kdbench")
        manager.add_hookspecs(kdbench.hookspecs)
        for observer in observers:
            manager.register(observer)
        self.hook = manager.hook

    def start(self) -> None:
        self.folder.write_plan(PlanRecord.of(self.plan, "tiny.toml").model_copy(update={"trials": ()}))
        self.hook.kdbench_suite_started(plan=self.plan, run=self.info)

    def begin(self, trial: Trial, kept: int = 0, fresh: bool = False) -> None:
        """Start a trial, or go on from a checkpoint after ``kept`` epochs."""
        place = self.folder.trial(trial.id)
        if fresh:
            place.clear()
        (place.path / "result.json").unlink(missing_ok=True)
        place.begin(TrialRecord.of(trial))
        place.write_epochs(place.epochs[:kept])
        self.hook.kdbench_trial_started(trial=trial, run=self.info)

    def epoch(self, trial: Trial, epoch: int, stage: str = "main", **other: Any) -> None:
        fields: dict[str, Any] = {
            "epoch": epoch,
            "stage": stage,
            "lr": 0.05,
            "train_loss": 2.0 / epoch,
            "terms": {"ce": 1.5 / epoch, "kl": 0.5 / epoch},
            "seconds": 2.0,
        }
        if stage == "main":
            fields["metrics"] = {"top1": min(99.0, 90.0 + epoch), "nll": 0.1 + 0.1 / epoch, "ece": 0.02} | other.pop(
                "metrics", {}
            )
        record = EpochRecord(**fields | other)
        self.folder.trial(trial.id).append_epoch(record)
        self.hook.kdbench_epoch_finished(trial=trial, record=record, run=self.info)

    def finish(self, trial: Trial, finished: str = "2026-01-01T00:01:00+00:00", **other: Any) -> None:
        place = self.folder.trial(trial.id)
        fields: dict[str, Any] = {
            "id": trial.id,
            "status": Status.DONE,
            "epoch": trial.recipe.epochs,
            "selection": "last",
            "metrics": {"top1": 94.0},
            "best_on_test": {"epoch": 3, "top1": 95.0},
            "teacher": {"key": trial.teacher.key, "sha256": "0" * 64, "top1": 98.5, "seconds": 12.0},
            "cost": {
                "seconds": 8.5,
                "teacher_seconds": 1.5,
                "extra_epochs": 0,
                "peak_memory_bytes": None,
                "student_parameters": 78042,
            },
            "data": {"name": "digits", "fingerprint": "f", "corrupt": 0},
            "environment": ENVIRONMENT,
            "started": "2026-01-01T00:00:00+00:00",
            "finished": finished,
        } | other
        place.weights.write_bytes(b"weights")
        result = place.finish(**fields)
        self.hook.kdbench_trial_finished(trial=trial, result=result, run=self.info)

    def fail(self, trial: Trial, message: str = "the loss went wrong") -> None:
        error = Failure(id=trial.id, stage="main", epoch=2, type="RuntimeError", message=message, why=message)
        self.folder.trial(trial.id).fail(error)
        self.hook.kdbench_trial_failed(trial=trial, error=error, run=self.info)

    def end(self, interrupted: bool = False) -> None:
        self.info.report.mkdir(parents=True, exist_ok=True)
        (self.info.report / "plots").mkdir(exist_ok=True)
        (self.info.report / "index.html").write_text("<p>report</p>")
        (self.info.report / "plots" / "curves.svg").write_text("<svg/>")
        self.hook.kdbench_suite_finished(plan=self.plan, run=self.info, interrupted=interrupted)


class ServerGoneError(Exception):
    pass


class MemoryStore:
    """A store in memory that keeps every value it is sent, so that a second copy shows.

    ``fails_at`` is the number of the call (from 0) at which it is gone: before it does as told, or, with
    ``answer_lost``, after.
    """

    def __init__(self) -> None:
        self.experiments: list[str] = []
        self.experiment_tags: dict[str, str] = {}
        self.logged: dict[str, Run] = {}
        self.sent: dict[str, list[tuple[str, int, float]]] = {}
        self.files: dict[str, list[str]] = {}
        self.ended: dict[str, int | None] = {}
        self.calls: list[str] = []
        self.fails_at: int | None = None
        self.answer_lost = False

    def _call(self, name: str, act: Callable[[], Any]) -> Any:
        gone = self.fails_at is not None and len(self.calls) >= self.fails_at
        first = gone and len(self.calls) == self.fails_at
        self.calls.append(name)
        answer = act() if not gone or (first and self.answer_lost) else None
        if gone:
            raise ServerGoneError(name)
        return answer

    def experiment(self, name: str, tags: Mapping[str, str]) -> str:
        def act() -> str:
            if name not in self.experiments:
                self.experiments.append(name)
            self.experiment_tags = {**tags, **self.experiment_tags}
            return str(self.experiments.index(name))

        return str(self._call("experiment", act))

    def runs(self, experiment: str) -> Iterator[Run]:
        def act() -> list[Run]:
            return [
                Run(
                    run.id,
                    run.started,
                    run.status,
                    dict(run.tags),
                    set(run.parameters),
                    {name: (step, value) for name, step, value in sorted(self.sent[run.id])},
                )
                for run in self.logged.values()
            ]

        return iter(self._call("runs", act))

    def create_run(self, experiment: str, started: int, tags: Mapping[str, str]) -> str:
        def act() -> str:
            run = Run(f"run{len(self.logged)}", started, "RUNNING", dict(tags))
            self.logged[run.id], self.sent[run.id], self.files[run.id] = run, [], []
            return run.id

        return str(self._call("create_run", act))

    def log(self, run: str, values: Sequence[Value], parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        def act() -> None:
            self.sent[run] += [(value.name, value.step, value.value) for value in values]
            self.logged[run].parameters |= set(parameters)
            self.logged[run].tags |= tags

        self._call("log", act)

    def upload(self, run: str, files: Sequence[tuple[Path, str]]) -> None:
        names = [f"{place}/{path.name}".lstrip("/") for path, place in files]
        self._call("upload", lambda: self.files[run].extend(names))

    def reopen(self, run: str) -> None:
        self._call("reopen", lambda: setattr(self.logged[run], "status", "RUNNING"))

    def end(self, run: str, status: str, ended: int | None = None) -> None:
        def act() -> None:
            self.logged[run].status = status
            self.ended[run] = ended

        self._call("end", act)

    def of_trial(self, trial: Trial) -> list[Run]:
        """All runs of a trial, in the order of their creation."""
        return [run for run in self.logged.values() if run.tags.get("kdbench.trial_id") == trial.id]

    def parents(self) -> list[Run]:
        """All runs of invocations."""
        return [run for run in self.logged.values() if "kdbench.invocation" in run.tags]


@pytest.fixture
def trial() -> Callable[..., Trial]:
    return make_trial


@pytest.fixture
def pretend(tmp_path: Path) -> Callable[..., PretendedRun]:
    def make(trials: Sequence[Trial], *observers: object) -> PretendedRun:
        return PretendedRun(tmp_path, trials, *observers)

    return make


@pytest.fixture
def until() -> Callable[[Callable[[], bool], str], None]:
    """``until(condition, what)`` waits."""
    return wait_until


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def new_store() -> type[MemoryStore]:
    return MemoryStore


@pytest.fixture
def server_gone() -> type[Exception]:
    return ServerGoneError


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {DEADLINE_SECONDS} seconds"
        time.sleep(0.05)


class Server:
    """A real ``mlflow server`` in a process group of its own; ``store`` replaces its SQLite file."""

    def __init__(self, folder: Path, store: str = "") -> None:
        self.folder = folder
        self.database = folder / "server.db"
        self.store = store or f"sqlite:///{self.database}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        # The server's own background jobs are of no use here, and slow to start.
        switched_off = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment = os.environ | switched_off
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True
            )
        wait_until(self._is_healthy, f"the start of the server (see {self.folder / 'server.log'})")

    def _is_healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The address of an empty database of a PostgreSQL server, which ends with the test."""
    pytest.importorskip("psycopg", reason="needs psycopg[binary]")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not found[-1].is_file():
        pytest.skip("needs PostgreSQL's initdb, as of Debian's package postgresql")
    # The server refuses to run as root, whose folders other users cannot read.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="kdbench-postgres-"))
    if as_user:
        shutil.chown(folder, "postgres")
    bin_folder, data = found[-1].parent, folder / "data"
    subprocess.run(
        [*as_user, bin_folder / "initdb", "-D", data, "-U", "kdbench", "-A", "trust"], check=True, capture_output=True
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    control = [*as_user, bin_folder / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-o", options, "-l", folder / "log", "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield f"postgresql://kdbench@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder)


@pytest.fixture
def postgres_server(tmp_path: Path, postgres: str) -> Iterator[Server]:
    server = Server(tmp_path, postgres)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    try:
        yield server
    finally:
        server.kill()


class FaultyServer(ThreadingHTTPServer):
    """Passes requests on to an MLflow server, and spoils those from number ``since`` on, ``times`` of them.

    ``fault`` is ``slow`` (takes ``delay`` seconds), ``hangs``, ``403``, ``500``, ``html``, ``empty`` (answers that no
    MLflow server gives), ``lost`` (does as it is told, and never answers) or ``reset`` (breaks off within an answer).
    """

    daemon_threads = True

    def __init__(self, behind: int, database: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Spoiler)
        self.behind = behind
        self.database = database
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.spoil("")
        self.let_go = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def spoil(self, fault: str, since: int = 0, times: int = 10**9, delay: float = 0.0) -> None:
        """From now on; an empty ``fault`` spoils nothing. Requests are counted from here."""
        self.fault, self.since, self.times, self.delay = fault, since, times, delay
        self.seen: list[str] = []

    def stop(self) -> None:
        self.let_go.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave."""


class _Spoiler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        number = len(self.server.seen)
        self.server.seen.append(f"{self.command} {self.path.partition('?')[0]}")
        spoiled = self.server.since <= number < self.server.since + self.server.times
        fault = self.server.fault if spoiled else ""
        if fault == "slow":
            time.sleep(self.server.delay)
        elif fault == "hangs":
            self.server.let_go.wait()
            self.close_connection = True
            return
        elif fault in {"403", "500"}:
            self._answer(int(fault), "application/json", b'{"error_code": "INTERNAL_ERROR", "message": "as told"}')
            return
        elif fault in {"html", "empty"}:
            page = b"<html><body>Please log in</body></html>" if fault == "html" else b"{}"
            self._answer(200, "text/html" if fault == "html" else "application/json", page)
            return
        upstream = HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        left_out = {"host", "connection", "content-length", "transfer-encoding"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault == "lost":
            self.close_connection = True
        elif fault == "reset":
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(content) + 100))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self._answer(answer.status, answer.getheader("Content-Type") or "", content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base class looks for these

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """In front of a server that runs, for all tests of a module: starting one takes seconds."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        between = FaultyServer(server.port, server.database)
        yield between
        between.stop()
    finally:
        server.kill()


class SteppedClock:
    """A clock that stands until it is told to go on, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()
