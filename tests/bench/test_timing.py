from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdbench.bench import timing

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_calls_to_warm_up_do_not_count(now):
    durations = iter([9.0, 9.0, 1.0, 2.0, 3.0])

    def action():
        now[0] += next(durations)

    assert timing.repeated(action, CPU, 0.0, least=3, warm_up=2) == [1, 2, 3]


def test_calls_are_repeated_until_the_time_is_over(now):
    def action():
        now[0] += 0.5

    assert len(timing.repeated(action, CPU, 4.0)) == 8
    assert len(timing.repeated(action, CPU, 0.1)) == 3
    assert len(timing.repeated(action, CPU, 1e9)) == timing.MOST


def test_ratios_are_those_of_neighbours_and_alternate(now):
    """The machine is slower from pair to pair, which changes no ratio."""
    order = []

    def takes(seconds, name):
        def action():
            now[0] += seconds * 2 ** (len(order) // 2)
            order.append(name)

        return action

    slow, fast = takes(3.0, "slow"), takes(2.0, "fast")

    assert timing.paired(slow, fast, CPU, 0.0, least=3) == [1.5, 1.5, 1.5]
    assert order == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]


def test_pairs_are_repeated_until_the_time_is_over(now):
    def action():
        now[0] += 0.5

    assert len(timing.paired(action, action, CPU, 6.0)) == 6
    assert len(timing.paired(action, action, CPU, 1e9)) == timing.MOST
