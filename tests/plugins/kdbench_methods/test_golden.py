"""The golden vectors as they ship: every file, with its loss and all its gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kdbench_methods import golden as vectors

FILES = Path(__file__).parents[2] / "golden"
# Holds which layers are matched, and no loss.
NO_LOSS = {"easytransfer_probe_layers"}


@pytest.fixture(scope="module")
def cases():
    return dict(vectors.cases(torch.device("cpu")))


def test_every_file_is_compared(cases):
    assert cases.keys() == {path.stem for path in FILES.glob("*.npz")} - NO_LOSS


def test_losses_and_all_gradients_agree_with_the_files(cases, tolerance):
    for name, pairs in cases.items():
        with np.load(FILES / f"{name}.npz") as file:
            expected = {"loss": file["loss"]}
            expected |= {f"gradient of {k.partition('_')[2]}": file[k] for k in file.files if k.startswith("grad")}
        assert pairs.keys() == expected.keys()
        for key, (found, shipped) in pairs.items():
            assert found.dtype == torch.float64
            np.testing.assert_array_equal(shipped.detach().numpy(), expected[key])
            scale = np.abs(expected[key]).max()
            np.testing.assert_allclose(found, expected[key], rtol=0, atol=tolerance[torch.float64] * scale)


def test_a_loss_without_a_gradient_does_not_agree(monkeypatch):
    monkeypatch.setattr(vectors, "PREDICTIONS", ())
    monkeypatch.setattr(vectors, "LOSSES", {"sp": lambda case: case["in_teacher"].square().mean().requires_grad_()})
    [(_, pairs)] = vectors.cases(torch.device("cpu"))
    assert pairs["gradient of student"][0].isnan().all()
