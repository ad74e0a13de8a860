from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from kdbench.engine import checkpoint
from kdbench.engine.progress import Progress
from kdbench.errors import TrialError
from kdbench.results import EpochRecord

RECORD = EpochRecord(epoch=1, stage="hints", train_loss=2.0, seconds=1.5)


@pytest.fixture
def some() -> Progress:
    """Every field with another value than its default."""
    return Progress(
        phase_index=1,
        epoch=2,
        records=[RECORD],
        seconds=3.0,
        teacher_seconds=4.0,
        peak_memory_bytes=5,
        best=(60.0, 7, {"weight": torch.ones(2)}),
        best_correct=torch.tensor([True, False]),
        started="2020-01-01T00:00:00+00:00",
    )


def test_a_checkpoint_carries_every_field(some, tmp_path):
    fresh = Progress()
    assert all(getattr(some, entry.name) != getattr(fresh, entry.name) for entry in fields(Progress))
    checkpoint.save(tmp_path / "checkpoint.pt", "a", some.state_dict())
    state = checkpoint.load(tmp_path / "checkpoint.pt", "a")
    assert state.keys() - {"protocol", "id"} == {entry.name for entry in fields(Progress)}
    fresh.load_state_dict({**state, "modules": {}})
    assert torch.equal(fresh.best[2]["weight"], some.best[2]["weight"])
    assert torch.equal(fresh.best_correct, some.best_correct)
    fresh.best, fresh.best_correct = some.best, some.best_correct
    assert fresh == some


@pytest.mark.parametrize("missing", [entry.name for entry in fields(Progress) if entry.name != "best_correct"])
def test_a_checkpoint_without_a_field_is_refused_as_a_whole(some, missing):
    state = some.state_dict()
    del state[missing]
    fresh = Progress(started="2020-01-02T00:00:00+00:00")
    with pytest.raises(KeyError, match=missing):
        fresh.load_state_dict(state)
    assert fresh == Progress(started="2020-01-02T00:00:00+00:00")


def test_a_checkpoint_from_before_the_bits_of_the_best_epoch_is_read(some):
    state = some.state_dict()
    del state["best_correct"]
    fresh = Progress()
    fresh.load_state_dict(state)
    assert (fresh.best_correct, fresh.best) == (None, some.best)


def test_a_record_that_cannot_be_read_is_refused(some):
    state = some.state_dict()
    state["records"][0]["epoch"] = 0
    with pytest.raises(TrialError, match=r"^the checkpoint's record of an epoch cannot be read: epoch"):
        some.load_state_dict(state)
