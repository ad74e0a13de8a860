"""Streams, as far as they can be seen without a GPU: who waits for whom."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from kdbench.engine.graphs.lanes import Lanes, draws_in_turn

GPU = torch.device("cuda", 0)


class Device:
    """Streams that note what they wait for, and which one is current."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.count = 0
        self.current = self.make("main")

    def make(self, name: str) -> Stream:
        return Stream(name, self)

    def new(self, device: torch.device) -> Stream:
        self.count += 1
        return self.make(f"stream {self.count}")

    @contextmanager
    def use(self, stream: Stream):
        before, self.current = self.current, stream
        yield
        self.current = before


class Stream:
    def __init__(self, name: str, device: Device) -> None:
        self.name, self.device = name, device

    def wait_stream(self, other: Stream) -> None:
        self.device.log.append((self.name, "waits for", other.name))


@pytest.fixture
def device(monkeypatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch.cuda, "Stream", made.new)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.current)
    monkeypatch.setattr(torch.cuda, "stream", made.use)
    return made


def test_learners_begin_after_the_main_stream_and_it_goes_on_after_them(device):
    lanes = Lanes(GPU)
    for _ in range(2):
        for learner in ("a", "b"):
            with lanes.of(learner):
                device.log.append(("step of", learner, "on", device.current.name))
        with lanes.of("c", alone=True):
            device.log.append(("step of", "c", "on", device.current.name))
        lanes.join()
    step = [
        ("stream 1", "waits for", "main"),
        ("step of", "a", "on", "stream 1"),
        ("stream 2", "waits for", "main"),
        ("step of", "b", "on", "stream 2"),
        ("step of", "c", "on", "main"),
        ("main", "waits for", "stream 1"),
        ("main", "waits for", "stream 2"),
    ]
    assert device.log == 2 * step


def test_nobody_waits_for_who_has_left(device):
    lanes = Lanes(GPU)
    with lanes.of("a"):
        pass
    lanes.forget("a")
    device.log.clear()
    lanes.join()
    assert device.log == []


def test_a_cpu_has_no_streams(device):
    lanes = Lanes(torch.device("cpu"))
    with lanes.of("a"):
        pass
    lanes.join()
    assert device.log == []


@pytest.mark.parametrize(
    ("version", "in_turn"), [("2.11.0+cu130", True), ("2.14.1", True), ("2.15.0+cu132", False), ("3.0.0", False)]
)
def test_before_torch_2_15_recordings_that_draw_share_a_seed(monkeypatch, version, in_turn):
    monkeypatch.setattr(torch, "__version__", version)
    assert draws_in_turn() is in_turn
