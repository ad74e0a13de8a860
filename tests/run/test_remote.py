"""Training where the results folder is not seen: the files arrive there, as if they had been written there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kdbench.claims import ClaimLostError, claiming, trials_of
from kdbench.errors import KdbenchError, ResultsError
from kdbench.hookspecs import hookimpl
from kdbench.opening import open_suite
from kdbench.results import TEACHERS, SuiteFolder
from kdbench.run import run_suite
from kdbench.run.job import Orders
from kdbench.run.remote import Content, ResultsServer
from kdbench.run.work import trainings_of
from kdbench.run.worker import work
from kdbench.status import Status

SUITE = {
    "name": "tiny",
    "question": "Does it run?",
    "seeds": [0],
    "checkpoint_every": 1,
    "data": {"name": "digits", "train_limit": 96, "test_limit": 50},
    "recipe": {"epochs": 3},
    "pairs": [{"teacher": "resnet8", "student": "resnet8"}],
    "methods": [{"name": "none"}, {"name": "kd"}],
}
NOWHERE = Path("/nowhere/at/all")


class Connection:
    """To a server, until it is cut."""

    def __init__(self, server):
        self.server = server
        self.cut = False

    def __getattr__(self, name):
        if self.cut:
            raise EOFError
        return getattr(self.server, name)


class Far:
    """An executor of one worker that sees nothing of the results folder.

    With ``cut``, its connection is cut after the message of the first epoch 2 of a teacher, and of a student.
    """

    def __init__(self, cut: bool = False) -> None:
        self.cut = {"kdbench_teacher_epoch_finished", "kdbench_epoch_finished"} if cut else set()
        self.epochs = []

    def __call__(self, jobs, session):
        server = ResultsServer(jobs[0].info.output, jobs[0].lease)
        for job in jobs:
            for only_teacher in (True, False):
                while not self.survives(replace(job, sign=NOWHERE), only_teacher, server, session):
                    pass
        server.close()

    def survives(self, job, only_teacher, server, session):
        connection = Connection(server)

        def tell(name, /, **arguments):
            session.hear(job, name, arguments)
            if name.endswith("epoch_finished"):
                self.epochs.append((name, arguments["record"].epoch))
                if arguments["record"].epoch == 2 and name in self.cut:
                    self.cut.remove(name)
                    connection.cut = True

        orders = Orders(session.stop.asked, session.stop.overdue)
        try:
            work(job, tell, orders, only_teacher=only_teacher, server=server and connection)
        except EOFError:
            return False
        return True


@pytest.fixture
def train(tmp_path, monkeypatch):
    def go(output: str, executor: Far | None = None, **options):
        if executor is not None:
            monkeypatch.setattr("kdbench.run.api.find_executor", lambda registry, given: (executor, True))
            options["executor"] = "far"
        places = {"output": tmp_path / output, "report_dir": tmp_path / "reports"}
        return run_suite(SUITE, device="cpu", observers=options.pop("observers", []), **places, **options)

    return go


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The results of a process that sees the folder."""
    place = tmp_path_factory.mktemp("one")
    return run_suite(SUITE, device="cpu", observers=[], output=place / "runs", report_dir=place / "reports")


def files(output: Path) -> set[str]:
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".claims/")}


def assert_equal(results, one):
    assert [trial.status for trial in results.plan.trials] == [Status.DONE] * 2
    assert files(results.folder.output) == files(one.folder.output)
    for trial in results.plan.trials:
        place = results.folder.trial(trial.id)
        assert place.damage() == place.damage(thorough=True) == ""
        ours, theirs = load_file(place.weights), load_file(one.folder.trial(trial.id).weights)
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_the_results_arrive_as_from_a_worker_that_sees_the_folder(train, one, tmp_path):
    told = []

    class Watch:
        @hookimpl
        def kdbench_trial_finished(self, trial, run):
            told.append((run.output, SuiteFolder(run.output.parent, "tiny").trial(trial.id).result is not None))

    results = train("runs", Far(), observers=[Watch()])
    assert_equal(results, one)
    # What observers are told is in the folder already.
    assert told == [(tmp_path / "runs/tiny", True)] * 2
    with claiming(tmp_path / "runs") as claims:
        assert not any(
            standing.holder for kind in (TEACHERS, trials_of("tiny")) for standing in claims.standings(kind).values()
        )


def test_when_a_worker_is_lost_the_next_one_continues_from_what_was_sent(train, one):
    far = Far(cut=True)
    results = train("runs", far)
    assert_equal(results, one)
    # The checkpoint of an epoch is sent with the next message.
    teachers = [epoch for name, epoch in far.epochs if name == "kdbench_teacher_epoch_finished"]
    assert teachers == [1, 2, 2, 3]
    students = [epoch for name, epoch in far.epochs if name == "kdbench_epoch_finished"]
    assert students == [1, 1, 2, 2, 2, 3, 3]


def test_a_worker_that_was_taken_for_dead_writes_nothing_more(train, one, tmp_path):
    class Twice(Far):
        def survives(self, job, only_teacher, server, session):
            first = server.lend(job, only_teacher)
            second = server.lend(job, only_teacher)
            assert (first.chosen, first.files) == (second.chosen, second.files)
            name = f"{TEACHERS}/{job.teacher}/epochs.jsonl" if only_teacher else f"tiny/{min(job.chosen)}/epochs.jsonl"
            for loan in (first.number, 99):
                with pytest.raises(ClaimLostError, match=r"^another worker has taken over, because this one was taken"):
                    server.take(loan, name, Content(b"late", 0))
            with pytest.raises(ClaimLostError, match=r"^tiny/other/result\.json: a worker without a claim"):
                server.take(second.number, "tiny/other/result.json", Content(b"{}", 0))
            return super().survives(job, only_teacher, server, session)

    assert_equal(train("runs", Twice()), one)


def test_a_worker_that_lost_its_loan_stops_and_its_successor_finishes(train, one):
    class Overtaken(Far):
        overtaken = False

        def survives(self, job, only_teacher, server, session):
            def tell(name, /, **arguments):
                if name == "kdbench_epoch_finished" and not self.overtaken:
                    self.overtaken = True
                    server.lend(job, only_teacher)
                session.hear(job, name, arguments)
                said.append(arguments.get("text"))

            work(job, tell, Orders(session.stop.asked, session.stop.overdue), only_teacher=only_teacher, server=server)
            return super().survives(job, only_teacher, server, session)

    said = []
    assert_equal(train("runs", Overtaken(), warn=lambda text: None), one)
    assert said.count("another worker has taken over, because this one was taken for dead") == 1


def test_a_full_disk_at_the_results_ends_the_run(train, monkeypatch):
    def full(self, loan, name, content):
        raise ResultsError(f"{name}: cannot be written: No space left on device")

    monkeypatch.setattr(ResultsServer, "take", full)
    with pytest.raises(KdbenchError, match="No space left on device"):
        train("runs", Far())


def test_without_a_server_the_remedy_is_named(train):
    class Lonely(Far):
        def survives(self, job, only_teacher, server, session):
            return super().survives(job, only_teacher, None, session)

    with pytest.raises(KdbenchError, match=r"a worker on .* does not find it; use an --output on a shared file system"):
        train("runs", Lonely())


def test_equal_trainings_of_two_teachers_are_one_task_after_the_other(train, monkeypatch):
    monkeypatch.setitem(SUITE, "pairs", [{"teacher": name, "student": "resnet8"} for name in ("resnet8", "resnet14")])
    far = Far()
    results = train("runs", far, with_report=False)
    first, second = (results.folder.trial(trial.id) for trial in results.plan.trials if trial.label == "none")
    # Two trials with kd, one with none.
    assert [epoch for name, epoch in far.epochs if name == "kdbench_epoch_finished"] == [1, 1, 2, 2, 3, 3, 1, 2, 3]
    assert (first.result.adopted_from, second.result.adopted_from) == (None, first.identifier)
    assert second.damage(thorough=True) == ""
    assert second.weights.read_bytes() == first.weights.read_bytes()
    with claiming(results.folder.output) as claims:
        assert not any(standing.holder for standing in claims.standings(trainings_of("tiny")).values())


def test_what_another_run_trains_is_left_to_it(train, monkeypatch, tmp_path):
    monkeypatch.setitem(SUITE, "methods", [{"name": "none"}])
    [planned] = open_suite(SUITE).plan.trials
    with claiming(tmp_path / "runs") as claims:
        claim = claims.claim(trainings_of("tiny"), planned.training)
        results = train("runs", Far(), with_report=False)
        assert [trial.status for trial in results.plan.trials] == [Status.PENDING]
        assert not claims.standings(trials_of("tiny"))[planned.id].holder
        claim.release()
    again = train("runs", Far(), with_report=False)
    assert [trial.status for trial in again.plan.trials] == [Status.DONE]
