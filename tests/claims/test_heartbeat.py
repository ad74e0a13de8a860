"""Signs of life, and what others conclude from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from kdbench.claims.heartbeat import Heartbeat, Holder, Watch, steady_seconds
from kdbench.machine import this_machine


@pytest.fixture
def heartbeat(tmp_path, clock) -> Heartbeat:
    return Heartbeat(tmp_path, 60.0, clock)


def elsewhere(tmp_path, **changes) -> Holder:
    """A process of another machine, whose number says nothing here."""
    said = replace(Holder("far", "gpu7", 1, "another machine", 60.0), **changes)
    (tmp_path / said.owner).write_text(json.dumps(asdict(said)))
    return said


def test_each_beat_is_seen(tmp_path, heartbeat):
    watch = Watch(tmp_path)
    beats = []
    for _ in range(3):
        heartbeat.beat()
        beats.append(watch.living(heartbeat.owner).beat)
    assert beats == [1, 2, 3]
    assert str(watch.living(heartbeat.owner)).startswith(f"process {os.getpid()} on ")


def test_one_that_has_ended_is_dead(tmp_path):
    heartbeat, watch = Heartbeat(tmp_path), Watch(tmp_path)
    heartbeat.start()
    assert watch.living(heartbeat.owner) is not None
    heartbeat.stop()
    assert watch.living(heartbeat.owner) is None
    assert os.listdir(tmp_path) == []


def test_a_killed_process_of_this_machine_is_dead_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    elsewhere(tmp_path, pid=process.pid, machine=this_machine())
    watch = Watch(tmp_path)
    assert watch.living("far") is not None
    process.kill()
    deadline = time.monotonic() + 60
    # Nobody has asked for its exit status yet: the number is still in use.
    while watch.living("far") is not None:
        assert time.monotonic() < deadline
    process.communicate()
    assert watch.living("far") is None


def test_one_elsewhere_is_dead_after_its_own_lease_without_a_beat(tmp_path, clock):
    said = elsewhere(tmp_path, lease=30.0)
    watch = Watch(tmp_path, clock)
    assert watch.living("far") == said
    clock.now += 29
    assert watch.living("far") == said
    said = elsewhere(tmp_path, lease=30.0, beat=1)
    clock.now += 29
    # The new beat is seen only now.
    assert watch.living("far") == said
    clock.now += 29
    assert watch.living("far") == said
    clock.now += 1
    assert watch.living("far") is None


def test_what_cannot_be_read_lives_for_a_lease(tmp_path, clock):
    (tmp_path / "far").write_text("{")
    watch = Watch(tmp_path, clock)
    assert watch.living("far") is not None
    clock.now += 59
    assert watch.living("far") is not None
    clock.now += 1
    assert watch.living("far") is None


def test_files_of_the_dead_are_removed(tmp_path, heartbeat):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    elsewhere(tmp_path, owner="dead", pid=dead.pid, machine=this_machine())
    elsewhere(tmp_path, owner="far")
    heartbeat.beat()
    Watch(tmp_path).forget_dead()
    assert {*os.listdir(tmp_path)} == {"far", heartbeat.owner}


def test_punctual_beats_keep_it_sound(heartbeat, clock):
    heartbeat.beat()
    for _ in range(10):
        clock.now += 29
        assert heartbeat.is_sound(0)
        heartbeat.beat()
    assert heartbeat.gaps == 0


def test_after_half_a_lease_nothing_is_certain(heartbeat, clock):
    heartbeat.beat()
    clock.now += 31
    assert not heartbeat.is_sound(0)
    # A late beat, as of a process that was stopped, does not hide the pause.
    heartbeat.beat()
    assert not heartbeat.is_sound(0)
    assert heartbeat.is_sound(heartbeat.gaps)


def test_a_pause_within_a_beat_is_noticed(heartbeat, clock, monkeypatch):
    heartbeat.beat()
    write = heartbeat._write

    def slowly() -> bool:
        clock.now += 31
        return write()

    monkeypatch.setattr(heartbeat, "_write", slowly)
    heartbeat.beat()
    assert not heartbeat.is_sound(0)


def test_a_removed_file_is_written_again_and_counts_as_a_pause(heartbeat, tmp_path):
    heartbeat.beat()
    heartbeat.path.unlink()
    assert Watch(tmp_path).living(heartbeat.owner) is None
    heartbeat.beat()
    assert Watch(tmp_path).living(heartbeat.owner) is not None
    assert not heartbeat.is_sound(0)


def test_the_thread_beats_without_help(tmp_path):
    heartbeat, watch = Heartbeat(tmp_path, lease=0.06), Watch(tmp_path)
    heartbeat.start()
    try:
        deadline = time.monotonic() + 60
        while (holder := watch.living(heartbeat.owner)) is None or holder.beat < 3:
            assert time.monotonic() < deadline
    finally:
        heartbeat.stop()


def test_the_clock_goes_on():
    assert steady_seconds() <= steady_seconds()
