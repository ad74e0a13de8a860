"""Comparisons of trainings: what is equal, and that each of them can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdbench.bench import correctness
from kdbench.bench.findings import EQUAL
from kdbench.bench.trainings import State, Trainings
from kdbench.engine.graphs import tape
from kdbench.engine.graphs.replayed import Replayed
from kdbench.engine.learner import Learner
from kdbench.engine.trainer import Trainer


@pytest.fixture
def world(tiny):
    return replace(tiny, n_train=correctness.FULL * correctness.BATCH_SIZE + correctness.LAST)


@pytest.fixture
def trainings(world):
    return Trainings(world, correctness.RECIPE, world.teacher("resnet8"), "resnet8")


@pytest.fixture
def compared(session, world, monkeypatch):
    """``compared(method)``: the row of its replays, and what was left out."""
    monkeypatch.setattr(correctness, "TEACHER", "resnet8")
    monkeypatch.setattr(correctness, "_company", lambda session, trainings: None)

    def make(method):
        current = session("correctness")
        correctness.measure(current, [method], world)
        return next(iter(current.findings.rows), None), current.findings

    return make


def test_replays_of_a_method_with_a_first_stage(compared):
    row, findings = compared("ft")
    assert (row.name, row.value, row.unit) == (correctness.EXECUTED_IS_REPLAYED, 1.0, EQUAL)
    # Of the usual batches of two stages, four are executed or recorded; the rest are replays, one each epoch compared.
    steps = correctness.EPOCHS * correctness.FULL
    assert row.settings == {"precision": "float32", "method": "ft", "student": "resnet8", "replays": 2 * (steps - 4)}
    assert not findings.failed


def test_a_method_that_cannot_be_recorded_says_why(compared):
    row, findings = compared("kdsvd")
    assert row is None
    [entry] = findings.left_out
    assert entry.reason.startswith("its steps are executed: ")
    assert "read on the host" in entry.reason
    assert not findings.failed


@pytest.mark.parametrize("found", [True, False], ids=["found-by-the-engine", "not-found"])
def test_a_replay_that_lacks_an_operation(compared, monkeypatch, found):
    record = tape.record

    def incomplete(action):
        made = record(action)
        made._kept = [one for one in made._kept if "_fused_sgd_" not in str(one.function)]
        return made

    monkeypatch.setattr(tape, "record", incomplete)
    if not found:
        monkeypatch.setattr(Replayed, "_compare", lambda self, recording, batch, shown: self._replay(recording, batch))
    row, findings = compared("kd")
    assert row.value == 0.0
    assert findings.failed
    if found:
        assert row.settings["reason"].startswith("a replay is not the step")
    else:
        assert row.settings["largest_difference"] > 0
        assert "executed_again" not in row.settings


def test_without_time_nothing_is_compared(session, world, clock):
    current = session("correctness", 1.0, clock)
    clock.now += 2
    correctness.measure(current, ["kd"], world)
    assert len(current.findings.left_out) == 2 * 4 + 1
    assert current.findings.rows == []
    assert not current.findings.failed


def test_a_comparison_that_fails_is_said_and_the_others_are_made(session, trainings, monkeypatch):
    def broken(trainings, replayed):
        raise ValueError("no good")

    for name in ("_in_a_cohort", "_beside_drawing", "_beside_failing"):
        monkeypatch.setattr(correctness, name, lambda trainings, replayed: {})
    monkeypatch.setattr(correctness, "_resumed", broken)
    current = session("correctness")
    correctness._company(current, trainings)
    assert [entry.failed for entry in current.findings.left_out] == [True] * 2
    assert all(entry.reason.startswith("ValueError: no good") for entry in current.findings.left_out)
    assert [row.value for row in current.findings.rows] == [1.0] * 6
    assert current.findings.failed


def test_resumed(trainings):
    assert correctness._resumed(trainings, True) == {}


def test_a_resume_without_the_optimiser_is_seen(trainings, monkeypatch):
    monkeypatch.setattr(Learner, "_stateful", lambda self: {"modules": self.trainer.modules})
    assert correctness._resumed(trainings, False)["after_epoch"] == 1


def test_in_a_cohort(trainings, monkeypatch):
    monkeypatch.setattr(correctness, "COMPANY", ("none", "rkd"))
    assert correctness._in_a_cohort(trainings, False) == {}


@pytest.mark.parametrize("planted", [False, True])
def test_beside_one_that_draws(trainings, monkeypatch, planted):
    if planted:
        monkeypatch.setattr(Trainer, "seed_globally", lambda self, *purpose: None)
    assert bool(correctness._beside_drawing(trainings, False)) is planted


def test_beside_one_that_fails(trainings):
    assert correctness._beside_failing(trainings, True) == {}


def test_one_that_should_fail_and_does_not(trainings, monkeypatch):
    monkeypatch.setattr(correctness, "_fail_midway", lambda learner: None)
    with pytest.raises(correctness.TrialError, match="these learners failed: none; expected: failing"):
        correctness._beside_failing(trainings, False)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([1.0, 2.0, float("nan")], {}),
        ([1.0, 2.5, float("nan")], {"largest_difference": float("inf"), "in": "a"}),
        ([1.0, 2.0], {"largest_difference": float("inf"), "in": "a"}),
    ],
)
def test_differences(other, expected):
    state = State({"a": torch.tensor([1.0, 2.0, float("nan")]), "b": torch.ones(2)}, [])
    assert state.difference(State({"a": torch.tensor(other), "b": torch.ones(2)}, [])) == expected


def test_the_largest_difference_and_its_tensor():
    state = State({"a": torch.zeros(2), "b": torch.tensor([0.0, 1.0])}, [])
    assert state.difference(State({"a": torch.tensor([0.0, 0.25]), "b": torch.tensor([0.0, 1.5])}, [])) == {
        "largest_difference": 0.5,
        "in": "b",
    }
    # Equal numbers, other bits.
    assert state.difference(State({"a": -torch.zeros(2), "b": state.tensors["b"]}, [])) == {
        "largest_difference": 0.0,
        "in": "a",
    }
    assert state.difference(State({"a": torch.zeros(2)}, []))["in"] == "b, which one of them lacks"
