"""What a step takes from the device: the schedule, counters, sums."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdbench.engine.clock import Clock
from kdbench.engine.counters import Counters
from kdbench.engine.phase import Phase
from kdbench.engine.teacher import FromLabels
from kdbench.engine.terms import Means

CPU = torch.device("cpu")


def test_a_clock_shows_rate_epoch_and_progress_of_each_step():
    phase = Phase("main", lambda *_: {}, 4, lambda progress: 1 / (1 + progress), (), (), (), uses_student=True)
    clock = Clock(phase, 2, CPU)
    assert clock.lr.item() == 1.0
    seen = []
    places = [value.data_ptr() for value in (clock.lr, clock.epoch, clock.progress)]
    for epoch in (0, 3):
        clock.begin_epoch(epoch)
        for _ in range(2):
            clock.tick()
            seen.append((clock.lr.item(), clock.epoch.item(), clock.progress.item()))
    assert seen == [(1.0, 0, 0.0), (1 / 1.5, 0, 0.125), (1 / 4.0, 3, 0.75), (1 / 4.5, 3, 0.875)]
    assert clock.rates == [1 / 4.0, 1 / 4.5]
    assert places == [value.data_ptr() for value in (clock.lr, clock.epoch, clock.progress)]


class Cumulative(nn.BatchNorm1d):
    """Counts by itself."""

    def forward(self, input):
        assert self.num_batches_tracked.item() >= 0
        return super().forward(input)


def network() -> nn.ModuleDict:
    shared = nn.BatchNorm1d(3)
    return nn.ModuleDict(
        {
            "usual": nn.BatchNorm1d(3),
            "twice": shared,
            "frozen": nn.BatchNorm1d(3).eval(),
            "unused": nn.BatchNorm1d(3),
            "cumulative": nn.BatchNorm1d(3, momentum=None),
            "own": Cumulative(3),
            "without": nn.BatchNorm1d(3, track_running_stats=False),
        }
    )


def run(layers: nn.ModuleDict, x: torch.Tensor) -> None:
    for name in ("usual", "twice", "twice", "frozen", "cumulative", "own", "without"):
        x = layers[name](x)


def test_counters_are_those_of_the_layers():
    expected = network()
    found = copy.deepcopy(expected)
    counters = Counters([found])
    for step in range(3):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        run(expected, x)
        with counters.once():
            run(found, x)
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    assert found["twice"].num_batches_tracked.item() == 6
    assert found["unused"].num_batches_tracked.item() == 0


def test_counters_are_back_after_an_error():
    layer = nn.BatchNorm1d(3)

    def fail() -> None:
        with Counters([layer]).once():
            layer(torch.randn(4, 3))
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        fail()
    assert layer.num_batches_tracked.item() == 0
    assert layer.state_dict()["num_batches_tracked"] is not None


def test_means_weigh_by_images_and_stay_in_their_memory():
    means = Means()
    for epoch in range(2):
        means.reset()
        for value, images in ((1.0, 3), (2.0, 1)):
            means.check(("a",))
            means.add(torch.tensor(2 * value), {"a": torch.tensor(value)}, images)
        assert means.read() == (2.5, {"a": 1.25})
        if epoch == 0:
            place = means.sums
    assert means.sums is place
    follower = Means()
    follower.follow(means)
    means.reset()
    assert follower.read() == (2.5, {"a": 1.25})


def test_the_gradients_of_the_step_before_are_not_in_the_base_of_the_peak(learner, feed, monkeypatch):
    trainer = learner(FromLabels(), foreign=()).trainer
    trainer.begin_epoch()
    first, second, *_ = feed.epoch("main", 0)
    trainer.step(0, first, None)
    weights = list(trainer.modules.parameters())
    assert all(weight.grad is not None for weight in weights)

    def reset(device: torch.device) -> int:
        assert all(weight.grad is None for weight in weights)
        return 1000

    # A GPU only where its memory is asked for.
    monkeypatch.setattr(trainer, "device", torch.device("cuda", 0))
    monkeypatch.setattr(trainer, "prepare", lambda number: None)
    monkeypatch.setattr("kdbench.engine.trainer._reset_peak", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1200)
    trainer.step(1, second, None)
    tensors = [*weights, *trainer.modules.buffers(), *weights]  # and a momentum for each weight
    assert trainer.progress.peak_memory_bytes == 200 + sum(t.numel() * t.element_size() for t in tensors)
