"""MLflow itself: its SQLite store, a server that is killed, and one that never answers."""

from __future__ import annotations

import dataclasses
import os
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from kdbench.errors import TrackingError
from kdbench.observers.mlflow import MlflowObserver, MlflowStore, connect, store_uri, sync, without_password
from kdbench.results import PlannedTrial, PlanRecord
from kdbench.status import Status

DEADLINE_SECONDS = 180.0


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        yield


def read(database: Path, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """What stands in MLflow's database, not going through MLflow."""
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        return connection.execute(query, arguments).fetchall()


def child_runs(database: Path, trial: Any) -> list[str]:
    query = "SELECT run_uuid FROM tags WHERE key = 'kdbench.trial_id' AND value = ?"
    return [run for (run,) in read(database, query, trial.id)]


def metric(database: Path, run: str, name: str) -> list[tuple[int, float]]:
    query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step"
    return read(database, query, run, name)


def everything(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    tables = ("experiments", "runs", "tags", "params", "metrics", "latest_metrics")
    return {table: sorted(read(database, f"SELECT * FROM {table}"), key=repr) for table in tables}


def test_the_default_store_is_a_local_file(
    pretend: Any, trial: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    warned: list[str] = []
    none, ab = trial("none", epochs=3), trial("ab", epochs=3)
    run = pretend([none, ab], MlflowObserver(None, warned.append))
    run.start()
    run.begin(none)
    run.begin(ab)
    run.epoch(ab, 1, stage="boundary")
    for epoch in (1, 2, 3):
        run.epoch(none, epoch)
        run.epoch(ab, epoch)
    run.finish(none)
    run.finish(ab)
    run.end()
    assert warned == []
    database = tmp_path / "mlflow.db"
    assert read(database, "SELECT name FROM experiments WHERE name != 'Default'") == [("tiny",)]
    # MLflow's own web interface shows the kind that this tag names, and this description.
    assert dict(read(database, "SELECT key, value FROM experiment_tags")) == {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": "Does it log?",
    }
    (run_none,), (run_ab,) = child_runs(database, none), child_runs(database, ab)
    assert metric(database, run_none, "train_loss") == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
    assert metric(database, run_ab, "train_loss") == [(2, 2.0), (3, 1.0), (4, 2 / 3)]
    assert metric(database, run_ab, "boundary/train_loss") == [(1, 2.0)]
    assert metric(database, run_ab, "result/test/top1") == [(4, 94.0)]
    statuses = read(database, "SELECT name, status FROM runs ORDER BY name")
    assert statuses == [
        ("ab resnet20:resnet8 seed 0", "FINISHED"),
        ("none resnet20:resnet8 seed 0", "FINISHED"),
        ("tiny 2026-01-01 00:00:00 UTC", "FINISHED"),
    ]
    params = dict(read(database, "SELECT key, value FROM params WHERE run_uuid = ?", run_ab))
    assert params["settings.temperature"] == "4.0"
    files = {str(path.relative_to(tmp_path / "mlruns")) for path in (tmp_path / "mlruns").rglob("*.*")}
    assert {file.partition("artifacts/")[2] for file in files} == {
        "trial.json",
        "epochs.jsonl",
        "result.json",
        "plan.json",
        "report/index.html",
        "report/plots/curves.svg",
    }
    before = everything(database)
    report = sync(run.folder, "tiny", None, run.info.report)
    assert everything(database) == before
    assert (report.finished, report.unchanged, report.values) == (2, 2, 0)
    # The current plan names runs, not the one that they were trained under.
    row = PlannedTrial.of(ab).model_copy(update={"label": "boundaries", "teacher": "big"})
    run.folder.write_plan(PlanRecord.of(run.plan, "tiny.toml").model_copy(update={"trials": (row,)}))
    assert sync(run.folder, "tiny", None, run.info.report).unchanged == 2
    assert read(database, "SELECT name FROM runs WHERE run_uuid = ?", run_ab) == [("boundaries big:resnet8 seed 0",)]
    # MLflow and Alembic announce tables and links, if they are let; old migrations print as they like.
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "mlflow.store" not in shown.err
    assert "alembic" not in shown.err


def test_an_interrupted_run_is_marked_killed(pretend: Any, trial: Any, tmp_path: Path) -> None:
    kd = trial("kd")
    run = pretend([kd], MlflowObserver("sqlite:///other.db", pytest.fail))
    run.start()
    run.begin(kd)
    run.epoch(kd, 1)
    run.end(interrupted=True)
    run.end()  # a second end finds nothing to do
    database = tmp_path / "other.db"
    assert {status for (status,) in read(database, "SELECT status FROM runs")} == {"KILLED"}
    (child,) = child_runs(database, kd)
    assert metric(database, child, "test/top1") == [(1, 91.0)]


def test_a_killed_server_loses_nothing_and_gets_nothing_twice(
    pretend: Any, trial: Any, server: Any, until: Any, tmp_path: Path
) -> None:
    warned: list[str] = []
    trials = [trial("none", epochs=6), trial("kd", epochs=6), trial("rkd", epochs=6)]
    none, kd, rkd = trials
    server.start()
    run = pretend(trials, MlflowObserver(server.uri, warned.append))
    run.start()
    for one in trials:
        run.begin(one)
    for epoch in (1, 2, 3):
        for one in trials:
            run.epoch(one, epoch)
    # One trial ends before, so that a complete run is among them.
    run.finish(none)

    def server_has_it() -> bool:
        steps = [
            [step for step, _ in metric(server.database, child, "train_loss")]
            for one in trials
            for child in child_runs(server.database, one)
        ]
        complete = read(server.database, "SELECT 1 FROM tags WHERE key = 'kdbench.result'")
        return steps == [[1, 2, 3]] * 3 and len(complete) == 1

    until(lambda: bool(warned) or server_has_it(), "logging of the first epochs")
    assert warned == []
    server.kill()
    for epoch in (4, 5, 6):
        for one in (kd, rkd):
            run.epoch(one, epoch)
    run.finish(kd)
    run.finish(rkd)
    run.end()
    assert len(warned) == 2
    assert warned[0].startswith(f"MLflow at {server.uri} fails (")
    assert warned[0].endswith("this run continues without it")
    assert warned[1] == f"MLflow does not have all data of this run; to send it: {sync_line(tmp_path, server.uri)}"
    for one in (kd, rkd):
        (child,) = child_runs(server.database, one)
        assert [step for step, _ in metric(server.database, child, "train_loss")] == [1, 2, 3]
    with pytest.raises(TrackingError, match=r"MLflow at http://127.*; run the command again to send the rest"):
        sync(run.folder, "tiny", server.uri)

    server.start()
    report = sync(run.folder, "tiny", server.uri, run.info.report)
    assert (report.finished, report.unchanged, report.completed, report.created) == (3, 1, 2, 0)
    for one, epochs in ((none, 3), (kd, 6), (rkd, 6)):
        (child,) = child_runs(server.database, one)
        assert metric(server.database, child, "train_loss") == [(e, 2.0 / e) for e in range(1, epochs + 1)]
        assert metric(server.database, child, "test/top1") == [(e, 90.0 + e) for e in range(1, epochs + 1)]
        assert metric(server.database, child, "terms/ce") == [(e, 1.5 / e) for e in range(1, epochs + 1)]
        assert metric(server.database, child, "result/test/top1") == [(epochs, 94.0)]
    statuses = [status for (status,) in read(server.database, "SELECT status FROM runs")]
    assert statuses == ["FINISHED"] * 4
    kept = {path.name for path in (server.folder / "artifacts").rglob("*.*")}
    assert kept == {"trial.json", "epochs.jsonl", "result.json", "plan.json", "index.html", "curves.svg"}
    before = everything(server.database)
    again = sync(run.folder, "tiny", server.uri, run.info.report)
    assert everything(server.database) == before
    assert (again.unchanged, again.values) == (3, 0)


def sync_line(folder: Path, uri: str) -> str:
    return f"kdbench mlflow sync tiny --output {folder}/runs --report-dir {folder}/reports --tracking-uri {uri}"


def test_the_command_that_completes_mlflow_is_whole_and_quoted(pretend: Any, trial: Any, tmp_path: Path) -> None:
    def refuse(uri: str) -> Any:
        raise ConnectionError("refused")

    warned: list[str] = []
    run = pretend([trial("kd", epochs=1)], MlflowObserver("sqlite:///my folder/it's.db", warned.append, refuse))
    run.info = dataclasses.replace(run.info, output=Path("my runs/tiny"), report=Path("my reports/tiny"))
    run.start()
    run.begin(trial("kd", epochs=1))
    run.end()
    command = warned[-1].removeprefix("MLflow does not have all data of this run; to send it: ")
    # As a shell takes it apart.
    parts = subprocess.run(
        ["bash", "-c", f'printf "%s\\0" {command}'], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert parts[:4] == ["kdbench", "mlflow", "sync", "tiny"]
    assert parts[4:8] == ["--output", f"{tmp_path}/my runs", "--report-dir", f"{tmp_path}/my reports"]
    assert parts[8:] == ["--tracking-uri", f"sqlite:///{tmp_path}/my folder/it's.db"]


def test_an_unreachable_server_is_named_with_the_reason(pretend: Any, trial: Any, tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        warned: list[str] = []
        kd = trial("kd")
        run = pretend([kd], MlflowObserver(uri, warned.append))
        run.start()
        run.begin(kd)
        run.end()
    assert warned == [
        f"MLflow at {uri} fails (Connection refused); this run continues without it",
        f"MLflow does not have all data of this run; to send it: {sync_line(tmp_path, uri)}",
    ]


class Hanging:
    """A client whose every call waits until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.asked = threading.Event()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.asked.set()
            self.let_go.wait()
            raise ConnectionError("http://ann:secret@tracking.example refused")

        return call


def test_hooks_return_while_the_server_hangs(pretend: Any, trial: Any, tmp_path: Path) -> None:
    client = Hanging()
    warned: list[str] = []
    trials = [trial("none", epochs=500), trial("kd", epochs=500)]
    observer = MlflowObserver("http://ann:secret@tracking.example", warned.append, connect=lambda uri: client)
    run = pretend(trials, observer)
    run.start()
    for one in trials:
        run.begin(one)
    assert client.asked.wait(DEADLINE_SECONDS)
    for epoch in range(1, 501):
        for one in trials:
            run.epoch(one, epoch)
    for one in trials:
        run.finish(one)
    # Every hook came back although no call to the server has.
    assert not client.let_go.is_set()
    assert warned == []
    # What waits is bounded by the number of trials, not of epochs.
    assert observer._queue.qsize() <= len(trials)
    client.let_go.set()
    run.end()
    assert warned == [
        "MLflow at http://tracking.example fails (http://tracking.example refused); this run continues without it",
        f"MLflow does not have all data of this run; to send it: {sync_line(tmp_path, 'http://tracking.example')}",
    ]


def test_closing_gives_up_on_a_server_that_hangs(pretend: Any, trial: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.observers.mlflow.PATIENCE_SECONDS", 0.05)
    client = Hanging()
    warned: list[str] = []
    kd = trial("kd")
    run = pretend([kd], MlflowObserver("http://tracking.example", warned.append, connect=lambda uri: client))
    run.start()
    run.begin(kd)
    assert client.asked.wait(DEADLINE_SECONDS)
    run.end()
    client.let_go.set()
    assert "did not respond for" in warned[0]
    assert len(warned) == 2


def test_a_run_that_trains_nothing_needs_no_mlflow(pretend: Any, trial: Any) -> None:
    def refuse(uri: str) -> Any:
        raise AssertionError("connected for nothing")

    run = pretend([trial("kd", status=Status.DONE)], MlflowObserver("http://tracking.example", pytest.fail, refuse))
    run.start()
    run.end()


def test_existing_environment_variables_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    connect("http://127.0.0.1:9")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert store_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    assert store_uri(None) == "http://tracking.example"
    assert store_uri(None, "http://other.example") == "http://other.example"


def test_passwords_are_not_shown() -> None:
    shown = without_password("MLflow at https://ann:secret@tracking.example:5000/x fails")
    assert shown == "MLflow at https://tracking.example:5000/x fails"


def test_a_deleted_experiment_is_named_with_its_remedy(pretend: Any, trial: Any) -> None:
    run = pretend([trial("kd")])
    run.start()
    client = connect(store_uri())
    client.delete_experiment(client.create_experiment("tiny"))
    with pytest.raises(TrackingError) as caught:
        sync(run.folder, "tiny")
    assert str(caught.value) == (
        "the experiment 'tiny' was deleted; restore it with `mlflow experiments restore --experiment-id 1`"
    )


def train(pretend: Any, trials: list[Any], uri: str, warned: list[str]) -> Any:
    """A run of three epochs that logs to ``uri``."""
    run = pretend(trials, MlflowObserver(uri, warned.append))
    run.start()
    for one in trials:
        run.begin(one)
    for epoch in (1, 2, 3):
        for one in trials:
            run.epoch(one, epoch)
    for one in trials:
        run.finish(one)
    run.end()
    return run


def is_complete(database: Path, trials: list[Any]) -> bool:
    """Whether each trial has one run that counts, with all its values, and nothing is left running."""
    superseded = {run for (run,) in read(database, "SELECT run_uuid FROM tags WHERE key = 'kdbench.superseded'")}
    for one in trials:
        (child,) = set(child_runs(database, one)) - superseded
        assert metric(database, child, "train_loss") == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
        assert metric(database, child, "result/test/top1") == [(3, 94.0)]
        assert read(database, "SELECT status FROM runs WHERE run_uuid = ?", child) == [("FINISHED",)]
        tags = dict(read(database, "SELECT key, value FROM tags WHERE run_uuid = ?", child))
        assert tags["kdbench.status"] == "done"
    return not read(database, "SELECT 1 FROM runs WHERE status = 'RUNNING'")


@pytest.mark.parametrize("fault", ["hangs", "403", "500", "html", "empty", "lost", "reset"])
def test_whatever_a_server_does_a_sync_completes_it(
    pretend: Any, trial: Any, faulty: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """From the first request on, from one in the middle on, and in single requests that clients then repeat."""
    database = faulty.database
    # Later on, an empty answer is what a real server gives to values that it has stored.
    moments = [(0, 10**9)] if fault == "empty" else [(0, 10**9), (5, 10**9), (2, 1), (3, 1), (4, 1)]
    for since, times in moments:
        # Other trials of the same experiment.
        trials = [trial(f"{label}-{fault}", seed=10 * since + times % 7, epochs=3) for label in ("none", "kd")]
        warned: list[str] = []
        faulty.spoil(fault, since, times)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2" if fault == "hangs" else "60")
        run = train(pretend, trials, faulty.uri, warned)
        assert len(warned) in ({0, 2} if times == 1 else {2})
        faulty.spoil("")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        sync(run.folder, "tiny", faulty.uri, run.info.report)
        assert is_complete(database, trials)
        before = everything(database)
        faulty.spoil("")
        again = sync(run.folder, "tiny", faulty.uri, run.info.report)
        assert everything(database) == before
        assert faulty.seen == ["GET /api/2.0/mlflow/experiments/get-by-name", "POST /api/2.0/mlflow/runs/search"]
        assert (again.completed, again.values, again.superseded) == (0, 0, 0)


def test_a_slow_server_does_not_hold_up_the_end(
    pretend: Any, trial: Any, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbench.observers.mlflow.CLOSING_SECONDS", 1.0)
    faulty.spoil("slow", delay=0.8)
    warned: list[str] = []
    trials = [trial("none-slow", epochs=3), trial("kd-slow", epochs=3)]
    run = train(pretend, trials, faulty.uri, warned)
    assert (
        warned[0] == f"MLflow at {faulty.uri} did not accept all data within 1 seconds; this run continues without it"
    )
    faulty.spoil("")
    sync(run.folder, "tiny", faulty.uri, run.info.report)
    assert is_complete(faulty.database, trials)


def test_a_trial_takes_few_requests(pretend: Any, trial: Any, faulty: Any) -> None:
    trials = [trial("few", seed=seed, epochs=3) for seed in range(9)]
    run = train(pretend, trials, "sqlite:///first.db", [])
    faulty.spoil("")
    report = sync(run.folder, "few", faulty.uri)  # an experiment of its own
    assert (report.completed, report.created) == (9, 9)
    assert is_complete(faulty.database, trials)
    calls = Counter(call.partition("-artifacts/")[0] for call in faulty.seen if "/experiments/" not in call)
    assert calls == {
        "POST /api/2.0/mlflow/runs/search": 2,
        "POST /api/2.0/mlflow/runs/create": 9 + 1,
        "PUT /api/2.0/mlflow": 9 * 3 + 1,
        "POST /api/2.0/mlflow/runs/log-batch": 9,
        "POST /api/2.0/mlflow/runs/update": 9 + 1,
    }


def test_two_that_open_a_new_sqlite_file_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow's own creation of the tables fails where two processes are at it.
    inside, most = [], []

    def create(tracking_uri: str) -> None:
        inside.append(tracking_uri)
        most.append(len(inside))
        time.sleep(0.1)
        inside.pop()

    monkeypatch.setattr("mlflow.MlflowClient", create)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    threads = [threading.Thread(target=connect, args=(uri,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_a_file_that_is_gone_when_its_turn_comes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Repository:
        def log_artifact(self, path: str, place: str | None) -> None:
            sent.append(Path(path).read_text())
            if "refused" in path:
                raise OSError("refused")

    registry = "mlflow.store.artifact.artifact_repository_registry.get_artifact_repository"
    monkeypatch.setattr(registry, lambda *arguments, **options: Repository())
    store = MlflowStore(mock.Mock())
    store._artifacts["run"] = "anywhere"
    for name in ("kept", "refused"):
        (tmp_path / name).write_text(name)
    store.upload("run", [(tmp_path / "gone", ""), (tmp_path / "kept", "")])
    assert sent == ["kept"]
    with pytest.raises(OSError, match="refused"):
        store.upload("run", [(tmp_path / "refused", "")])
