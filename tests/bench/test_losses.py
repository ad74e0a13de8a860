from __future__ import annotations

import math

import pytest
import torch

from kdbench.bench import losses
from kdbench.bench.losses import LOSS, MEMORY, Case, Cost, Sizes, prepared
from kdbench.discovery import discover
from kdbench.testing.subject import Examinee

CPU = torch.device("cpu")


def case(name, stage="main", B=8, D=16):
    return Case(name, stage, B, D, Examinee.of(discover().method(name), {}))


def test_every_built_in_loss_and_stage_is_measured(session, monkeypatch):
    monkeypatch.setattr(losses, "N_TRAIN", 500)
    monkeypatch.setattr(losses, "repeated", lambda action, *_: [action() or 1.0])
    monkeypatch.setattr(losses, "peak_bytes", lambda action, device: 2**20)
    current = session("losses")
    losses.measure(current, batches=(8,), widths=(16,))
    timed = {(row.settings["loss"], row.settings["stage"]) for row in current.findings.rows if row.name == LOSS}
    measured = {(row.settings["loss"], row.settings["stage"]) for row in current.findings.rows if row.name == MEMORY}
    assert timed == measured
    assert {("kd", "main"), ("rkd", "main"), ("crd", "main"), ("ab", "boundary"), ("ft", "paraphraser")} <= timed
    assert [(entry.settings["loss"], entry.failed) for entry in current.findings.left_out] == [("combine", False)]
    assert {(row.value, row.unit) for row in current.findings.rows} == {(1000.0, "ms"), (1.0, "MiB")}


def test_a_call_computes_the_gradients(monkeypatch):
    """Of logits and embedding of the student; RKD has no parameters."""
    asked = []
    original = torch.autograd.grad

    def grad(loss, leaves, **options):
        found = original(loss, leaves, **options)
        asked.append(
            [(tuple(leaf.shape), gradient.abs().sum().item() > 0) for leaf, gradient in zip(leaves, found, strict=True)]
        )
        return found

    monkeypatch.setattr(torch.autograd, "grad", grad)
    prepared(case("rkd"), CPU)()
    assert asked == [[((8, 100), True), ((8, 16), True)]]


def test_the_cheapest_comes_first(session, monkeypatch):
    """A second for each image and a width of 16: at 4 images, the next size may take four times as long."""
    clock_now = []
    current = session("losses", 100.0)

    def measured(session, case):
        clock_now.append((case.B, case.D))
        session.budget._clock.now += case.B
        return Cost(case.B, 0.0)

    monkeypatch.setattr(losses, "_measure", measured)
    monkeypatch.setattr(losses, "_smallest", lambda *_: iter([case("kd", B=1, D=16)]))
    losses.measure(current, batches=(1, 2, 16), widths=(16, 32))
    # 5 calls of up to 4 seconds fit into the 99 that are left; those of 16 images do not.
    assert clock_now == [(1, 16), (1, 32), (2, 16), (2, 32)]
    left_out = {(entry.settings["batch"], entry.settings["width"]): entry.reason for entry in current.findings.left_out}
    assert left_out == {(16, 16): losses.NO_TIME, (16, 32): losses.NO_TIME}


def test_what_a_case_may_cost():
    sizes = Sizes((64, 256), (16, 128))
    small = case("kd", B=64, D=16)
    known = {small: Cost(1.0, 10.0)}
    assert sizes.expected(small, {}) == Cost(0.0, 0.0)
    assert sizes.expected(case("kd", B=256, D=16), known) == Cost(16.0, 160.0)
    assert sizes.expected(case("kd", B=64, D=128), known) == Cost(64.0, 640.0)
    assert sizes.expected(case("kd", B=256, D=128), known).seconds == math.inf
    assert sizes.expected(case("vid", B=256, D=16), known).seconds == math.inf


@pytest.mark.parametrize(
    ("error", "failed"), [(ValueError("no good"), True), (torch.OutOfMemoryError("out of memory"), False)]
)
def test_a_loss_that_fails_does_not_end_the_others(session, monkeypatch, error, failed):
    def measured(session, case):
        if case.loss == "kd":
            raise error
        return Cost(0.0, 0.0)

    monkeypatch.setattr(losses, "_measure", measured)
    monkeypatch.setattr(losses, "_smallest", lambda *_: iter([case("kd"), case("pkt")]))
    current = session("losses")
    losses.measure(current, batches=(8, 16), widths=(16,))
    first, second = current.findings.left_out
    assert (first.settings["loss"], first.failed) == ("kd", failed)
    assert str(error) in first.reason
    assert (second.settings["loss"], second.settings["batch"]) == ("kd", 16)
    assert second.reason == "no smaller batch or width was measured"


def test_no_loss_may_need_most_of_the_memory(session, monkeypatch):
    monkeypatch.setattr(losses, "_measure", lambda session, case: Cost(0.0, 100.0))
    monkeypatch.setattr(losses, "free_bytes", lambda device: 700)
    monkeypatch.setattr(losses, "_smallest", lambda *_: iter([case("kd")]))
    current = session("losses")
    losses.measure(current, batches=(8, 16), widths=(16,))
    [entry] = current.findings.left_out
    assert (entry.settings["batch"], entry.reason) == (16, "may need more than half of the free memory")
