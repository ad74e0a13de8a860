from __future__ import annotations

import pytest
import torch

from kdbench.bench import layout
from kdbench.bench.layout import Stepping

RATIO = "steps/s: ratio to channels_last float32"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(layout, "BATCH_SIZE", 4)


def test_every_layout_with_ratios_of_rounds(session, tiny, monkeypatch):
    """Contiguous memory takes twice the time, and each round takes longer than the one before."""
    rounds = {"channels_last": 0, "contiguous": 0}

    def seconds(self, steps):
        name = "channels_last" if self.layout is torch.channels_last else "contiguous"
        rounds[name] += 1
        return rounds[name] * (1.0 if name == "channels_last" else 2.0)

    monkeypatch.setattr(Stepping, "seconds", seconds)
    current = session("layout", 1000.0)
    current.budget.until = lambda share: lambda: True
    layout.measure(current, [("resnet8", "resnet8")], tiny)
    rows = {(row.name, row.settings["layout"]): row for row in current.findings.rows}
    assert rows.keys() == {("steps", "channels_last"), ("steps", "contiguous"), (RATIO, "contiguous")}
    # The first measurement of each only tells whether there is time.
    assert rows["steps", "channels_last"].value == 1 / 3
    assert rows["steps", "contiguous"].value == 1 / 6
    assert (rows[RATIO, "contiguous"].value, rows[RATIO, "contiguous"].spread) == (0.5, (0.5, 0.5))
    assert rows[RATIO, "contiguous"].n == layout.ROUNDS


@pytest.mark.parametrize("name", list(layout.LAYOUTS))
def test_all_tensors_are_in_the_layout(session, tiny, name):
    stepping = Stepping.make(session("layout"), tiny, "resnet8", "resnet8", "float32", name)
    assert stepping.seconds(1) > 0
    networks = stepping.teacher.network, stepping.learner.student.network
    tensors = [parameter for network in networks for parameter in network.parameters()]
    tensors += [value for state in stepping.learner.trainer.optimizer.state.values() for value in state.values()]
    tensors.append(stepping.batch.images)
    wide = [tensor for tensor in tensors if tensor.ndim == 4]
    assert len(wide) > 2 * 9
    assert all(tensor.is_contiguous(memory_format=layout.LAYOUTS[name]) for tensor in wide)
    # Seven convolutions and two shortcuts in each network.
    assert stepping.in_another_layout() == "0 of 18"


def test_operations_that_change_the_layout_are_seen(session, tiny, monkeypatch):
    stepping = Stepping.make(session("layout"), tiny, "resnet8", "resnet8", "float32", "contiguous")
    convolution = next(m for m in stepping.teacher.network.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, given, out: out.contiguous(memory_format=torch.channels_last))
    changed, _, every = stepping.in_another_layout().split()
    assert 0 < int(changed) < int(every)


def test_pairs_without_time_are_left_out(session, tiny, monkeypatch):
    """A step takes a second, 2 layouts, 3 rounds of 2 steps: 12 seconds, of half of the time."""
    monkeypatch.setattr(Stepping, "seconds", lambda self, steps: 1.0)
    monkeypatch.setattr(Stepping, "in_another_layout", lambda self: "")
    pairs = [("resnet8", "resnet8"), ("resnet8", "resnet14")]
    for seconds, measured in ((23.0, ["resnet8:resnet14"]), (25.0, ["resnet8:resnet8", "resnet8:resnet14"])):
        current = session("layout", seconds)
        current.budget.until = lambda share: lambda: True
        layout.measure(current, pairs, tiny)
        assert sorted({row.settings["pair"] for row in current.findings.rows}) == sorted(measured)
        assert [entry.settings["pair"] for entry in current.findings.left_out] == [
            pair for pair in ("resnet8:resnet8", "resnet8:resnet14") if pair not in measured
        ]
