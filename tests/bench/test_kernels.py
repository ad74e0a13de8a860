from __future__ import annotations

import pytest
import torch

from kdbench.bench import kernels
from kdbench.bench.profile import launches
from kdbench.opening import open_suite

CPU = torch.device("cpu")


@pytest.fixture
def suite():
    given = {
        "name": "small",
        "question": "What is in a step?",
        "seeds": [0],
        "data": {"name": "digits"},
        "recipe": {"epochs": 1, "batch_size": 4},
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}, {"teacher": "resnet14", "student": "resnet20"}],
        "methods": [{"name": "kd"}],
    }
    return open_suite(given).suite


def test_each_network_is_measured_once(session, tiny, suite, monkeypatch):
    """Of ResNet-14 on 8x8 images, the operations are counted by hand: 2 for each weight and place of an output."""

    def once(action, *_, **__):
        action()
        return [0.5]

    current = session("kernels", 0.1)
    current._peaks["float32"] = [2e12, 1e12, 3e12]

    def compared(folded, plain, *_):
        torch.testing.assert_close(folded()["logits"], plain()["logits"])
        operators.extend(launches(action, CPU) for action in (folded, plain))
        return [0.75, 0.5, 0.625]

    operators = []
    monkeypatch.setattr(kernels, "repeated", once)
    monkeypatch.setattr(kernels, "paired", compared)
    kernels.measure(current, suite, tiny)
    rows = {(row.name, row.settings["network"]): row for row in current.findings.rows}
    names = ("step", "operators", "peak memory", "operations", "share of the matrix peak")
    networks = (("teacher", "resnet14"), ("student", "resnet8"), ("student", "resnet20"))
    ratio = rows.pop((kernels.FOLDED, "resnet14"))
    assert (ratio.value, ratio.n, ratio.spread, ratio.unit) == (0.625, 3, (0.5625, 0.6875), "ratio")
    # Without the normalisations, of which each calls two operators or more.
    assert operators[0] < operators[1] - 2 * 15
    assert rows.keys() == {(f"{name} of the {role}", network) for role, network in networks for name in names}
    assert len(rows) + 1 == len(current.findings.rows)
    # More layers, more of everything.
    for name in ("operators", "peak memory", "operations"):
        small, large = (rows[f"{name} of the student", network].value for network in ("resnet8", "resnet20"))
        assert large > 1.5 * small
    first = 64 * (3 * 16 * 9 + 4 * 16 * 16 * 9)
    second = 16 * (16 * 32 * 9 + 3 * 32 * 32 * 9 + 16 * 32)
    third = 4 * (32 * 64 * 9 + 3 * 64 * 64 * 9 + 32 * 64)
    operations = 2 * 4 * (first + second + third + 64 * 10)
    assert rows["operations of the teacher", "resnet14"].value * 1e9 == pytest.approx(operations)
    share = rows["share of the matrix peak of the teacher", "resnet14"]
    assert (share.value, share.unit) == (pytest.approx(100 * operations / 0.5 / 2e12), "%")


def test_without_time_all_is_left_out(session, tiny, suite, clock):
    current = session("kernels", 1.0, clock)
    current._peaks["float32"] = [1e12]
    clock.now += 2
    kernels.measure(current, suite, tiny)
    assert current.findings.rows == []
    assert [(entry.name, entry.settings["network"]) for entry in current.findings.left_out] == [
        ("step of the teacher", "resnet14"),
        ("step of the student", "resnet8"),
        ("step of the student", "resnet20"),
    ]
