from __future__ import annotations

import torch

from kdbench.engine import checkpoint


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, "trial", {"epoch": 3, "weights": torch.arange(4.0)})
    state = checkpoint.load(path, "trial")
    assert state["epoch"] == 3
    assert torch.equal(state["weights"], torch.arange(4.0))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_missing_truncated_and_foreign_checkpoints_are_none(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path, "trial") is None
    checkpoint.save(path, "trial", {"weights": torch.arange(1000.0)})
    assert checkpoint.load(path, "another") is None
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert checkpoint.load(path, "trial") is None, length
    path.write_bytes(whole)
    monkeypatch.setattr(checkpoint, "PROTOCOL", 999)
    assert checkpoint.load(path, "trial") is None
