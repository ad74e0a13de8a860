from __future__ import annotations

import pickle
from pathlib import Path

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
    for place in range(0, len(whole), len(whole) // 97):
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(changed)
        state = checkpoint.load(path, "trial")
        # What pads the file to a boundary belongs to no entry.
        assert state is None or torch.equal(state["weights"], torch.arange(1000.0)), place
    path.unlink()
    path.mkdir()
    assert checkpoint.load(path, "trial") is None
    path.rmdir()
    path.write_bytes(whole)
    monkeypatch.setattr(checkpoint, "PROTOCOL", 999)
    assert checkpoint.load(path, "trial") is None


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "checkpoint.pt"
    torch.save({"protocol": checkpoint.PROTOCOL, "id": "trial", "weights": Runs()}, path)
    assert checkpoint.load(path, "trial") is None
    path.write_bytes(pickle.dumps({"protocol": checkpoint.PROTOCOL, "id": "trial", "weights": Runs()}))
    assert checkpoint.load(path, "trial") is None
    assert not (tmp_path / "ran").exists()
