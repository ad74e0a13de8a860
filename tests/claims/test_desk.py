"""Claims: one holder at a time, and one that was taken for dead does not write any more."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.atomic import HOST
from kdbench.claims import CLAIMS, NEVER_HELD, ClaimLostError, Claims, HeldError, Watch, claiming, standings
from kdbench.claims.heartbeat import Heartbeat
from kdbench.errors import ResultsError


class Process:
    """A process that claims; its beats come when the test says so."""

    def __init__(self, output: Path, clock) -> None:
        folder = output / CLAIMS / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        self.heartbeat = Heartbeat(folder, 60.0, clock)
        self.watch = Watch(folder, clock)
        # Not of this machine, where its process would be seen to live.
        self.watch._machine = "another machine"
        self.claims = Claims(output, self.heartbeat, self.watch)
        self.heartbeat.beat()

    def take(self, **options):
        return self.claims.take("s", "a", self.claims.standing("s", "a"), **options)


@pytest.fixture
def first(tmp_path, clock) -> Process:
    return Process(tmp_path, clock)


@pytest.fixture
def second(tmp_path, clock) -> Process:
    return Process(tmp_path, clock)


@pytest.mark.parametrize("kind", ["tiny/trials", "_teachers"])
def test_what_a_dead_process_left_of_a_claim_is_removed(tmp_path, kind):
    folder = tmp_path / CLAIMS / kind
    folder.mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, own = (folder / f".00ff.{HOST}.{pid}.tmp" for pid in (ended.pid, os.getppid()))
    left.touch()
    own.touch()
    with claiming(tmp_path):
        assert [path.name for path in folder.iterdir()] == [own.name]


def test_one_holds_it_until_it_gives_it_up(first, second):
    claim = first.take()
    assert claim is not None
    assert second.take() is None
    assert first.take() is None
    with pytest.raises(HeldError, match=rf"a is held by process {os.getpid()} on"):
        second.claims.claim("s", "a")
    first.heartbeat.beat()
    assert second.claims.others("s").keys() == {"a"}
    assert first.claims.others("s") == {}
    claim.release()
    assert first.claims.standing("s", "a").holder is None
    assert second.claims.claim("s", "a").entry.owner == second.heartbeat.owner


def test_of_two_with_the_same_view_one_succeeds(first, second):
    assert first.claims.take("s", "a", NEVER_HELD) is not None
    assert second.claims.take("s", "a", NEVER_HELD) is None


def test_an_outdated_view_never_takes_what_was_taken_and_given_back(first, second):
    first.take().release()
    assert second.claims.take("s", "a", NEVER_HELD) is None


def test_the_dead_ones_claim_is_taken_over_after_its_lease_and_it_learns_so(first, second, clock):
    lost = first.take()
    lost.check()
    assert second.take() is None
    clock.now += 59
    assert second.take() is None
    clock.now += 2
    second.heartbeat.beat()
    kept = second.take()
    assert kept is not None
    # The first one wakes up, and its thread beats before anything else happens.
    first.heartbeat.beat()
    for _ in range(2):
        with pytest.raises(ClaimLostError, match=r"^a: another process has taken it over, because this one gave no"):
            lost.check()
    lost.release()
    kept.check()
    assert first.claims.standing("s", "a").holder.owner == second.heartbeat.owner


def test_after_a_pause_that_nobody_used_the_claim_is_made_again(first, second, clock):
    claim = first.take()
    clock.now += 1000
    first.heartbeat.beat()
    claim.check()
    assert second.take() is None
    claim.release()
    with pytest.raises(ClaimLostError):
        claim.check()
    assert second.take() is not None


def test_deaths_are_counted_until_an_epoch_was_finished(first, second, clock, tmp_path):
    def die(process: Process, **options) -> int:
        claim = process.take(**options)
        process.heartbeat.path.unlink()
        return claim.entry.deaths

    assert [die(Process(tmp_path, clock), together=4, epochs=2) for _ in range(3)] == [0, 1, 2]
    known = first.claims.standing("s", "a")
    assert (known.deaths(2), known.deaths(3), known.entry.together) == (3, 0, 4)
    assert die(Process(tmp_path, clock), epochs=3) == 0
    claim = first.take(epochs=3)
    assert claim.entry.deaths == 1
    claim.release()
    assert second.take(epochs=3).entry.deaths == 0


def test_within_the_context_others_see_it_and_afterwards_they_do_not(tmp_path):
    with claiming(tmp_path) as claims:
        claims.claim("s", "a")
        watch = Watch(tmp_path / CLAIMS / "workers")
        assert standings(tmp_path, "s", watch)["a"].holder.pid == os.getpid()
    assert standings(tmp_path, "s", watch)["a"].holder is None


def test_a_claim_whose_owner_is_unknown_is_free_after_a_lease(first, clock, tmp_path):
    (tmp_path / CLAIMS / "s").mkdir()
    (tmp_path / CLAIMS / "s" / "a.000001").touch()
    assert first.take() is None
    clock.now += 60
    first.heartbeat.beat()
    assert first.take() is not None


def test_an_output_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").touch()
    refused = pytest.raises(ResultsError, match=r"runs: cannot be written: Not a directory")
    with refused, claiming(tmp_path / "runs"):
        pytest.fail("claimed")


def test_a_holder_of_another_machine_is_certain_after_a_beat(first, second, clock, monkeypatch):
    first.take()
    holder = second.claims.standing("s", "a").holder
    assert second.claims.is_uncertain([holder])
    first.heartbeat.beat()
    second.claims.standing("s", "a")
    assert not second.claims.is_uncertain([holder])
    # One that does not beat is waited for until it is dead.
    third = Process(second.claims._output, clock)

    def sleep(seconds: float) -> None:
        clock.now += 20

    monkeypatch.setattr("kdbench.claims.desk.time.sleep", sleep)
    assert third.claims.others("s") == {}
    assert clock.now == 1060.0


def test_a_release_that_cannot_be_written_is_tried_again(first, second, monkeypatch):
    claim = first.take()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        claim.release()
    assert second.take() is None
    assert first.claims.standing("s", "a").holder is None
    assert second.take() is not None
