"""The loss against a plain rendering of its equations, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_example.standardised_kd import StandardisedKD, standardised_kd_loss
from scipy.special import softmax

from kdbench.discovery import discover


def logits(seed: int, rows: int = 4, classes: int = 7) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def by_hand(s: np.ndarray, t: np.ndarray, T: float) -> float:
    total = 0.0
    for student, teacher in zip(s, t, strict=True):
        p = softmax((student - student.mean()) / student.std() / T)
        q = softmax((teacher - teacher.mean()) / teacher.std() / T)
        total += sum(q[k] * np.log(q[k] / p[k]) for k in range(len(q)))
    return T**2 * total / len(s)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_equals_the_equations(temperature: float) -> None:
    s, t = logits(0), logits(1)
    # The epsilon under the root is what remains between the two.
    expected = by_hand(s.numpy(), t.numpy(), temperature)
    assert standardised_kd_loss(s, t, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_scale_and_shift_of_either_side_do_not_matter() -> None:
    s, t = logits(0), logits(1)
    loss = standardised_kd_loss(s, t, 2.0)
    for changed in (standardised_kd_loss(5 * s + 3, t, 2.0), standardised_kd_loss(s, 0.5 * t - 1, 2.0)):
        torch.testing.assert_close(changed, loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(standardised_kd_loss(2 * t, t, 2.0), torch.zeros((), dtype=t.dtype), rtol=0, atol=1e-9)


def test_gradient() -> None:
    s, t = logits(0).requires_grad_(), logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: standardised_kd_loss(s, t, 2.0), (s,))
    standardised_kd_loss(s, t, 2.0).backward()
    assert t.grad is None


def test_a_constant_row_gives_a_finite_gradient() -> None:
    s = torch.zeros(2, 7, requires_grad=True)
    loss = standardised_kd_loss(s, logits(1, rows=2).float(), 2.0)
    loss.backward()
    assert loss.isfinite()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_it_is_offered_and_its_settings_are_known() -> None:
    offer = discover().method("standardised-kd")
    assert offer.load() is StandardisedKD
    assert offer.provider.distribution == "kdbench-example"
    assert {name: setting["type"] for name, setting in offer.to_json()["settings"].items()} == {
        "temperature": "float > 0",
        "ce_weight": "float >= 0",
        "kd_weight": "float >= 0",
    }
