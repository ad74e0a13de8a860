from __future__ import annotations

import pytest
import torch
from kdbench_methods.kd import KD, soft_target_loss
from scipy.special import softmax
from scipy.stats import entropy

from kdbench.method import Output


def test_golden_term(golden, tolerance):
    case = golden("kd_kl_T4")
    [s] = case.leaves("in_student")
    case.check(soft_target_loss(s, case["in_teacher"], T=4.0), tolerance[torch.float64])


def test_golden_total(golden, tolerance, make_batch, total):
    case = golden("kd_total_T4_ce0.1_kl0.9")
    [s] = case.leaves("in_student")
    terms = KD()(Output(s), Output(case["in_teacher"]), make_batch(labels=case["in_target"]))
    case.check(total(terms), tolerance[torch.float64])


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_is_the_relative_entropy_times_the_squared_temperature(T):
    s, t = torch.randn(2, 7, 5, dtype=torch.float64)
    expected = T**2 * entropy(softmax(t.numpy() / T, axis=1), softmax(s.numpy() / T, axis=1), axis=1).mean()
    assert soft_target_loss(s, t, T).item() == pytest.approx(expected, rel=1e-9)


def test_is_zero_where_the_student_equals_the_teacher():
    t = torch.randn(4, 10, dtype=torch.float64)
    assert soft_target_loss(t, t, 4.0).item() == 0.0


def test_gradient():
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: soft_target_loss(s, t, 4.0), s.requires_grad_())


def test_large_logits_stay_finite():
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = soft_target_loss(s, torch.tensor([[-1e4, 1e4, 0.0]]), 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(16 * 2e4 / 4)
    assert s.grad is not None
    assert s.grad.isfinite().all()
