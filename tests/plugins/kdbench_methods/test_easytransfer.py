from __future__ import annotations

import pytest
import torch
from kdbench_methods.easytransfer import (
    EasyTransfer,
    SummedSquares,
    reverse_divergence,
    soft_cross_entropy,
    summed_squares,
)
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from kdbench.method import Output


def test_golden_mse(golden, tolerance):
    case = golden("easytransfer_mse")
    [s] = case.leaves("in_student")
    case.check(summed_squares(s, case["in_teacher"]), tolerance[torch.float64])


@pytest.mark.parametrize(("name", "loss"), [("easytransfer_xent", "xent"), ("easytransfer_kld_as_meant", "kld")])
def test_golden_total(name, loss, golden, tolerance, make_batch, total):
    case = golden(name)
    [s] = case.leaves("in_student")
    terms = EasyTransfer(loss=loss)(Output(s), Output(case["in_teacher"]), make_batch(labels=case["in_target"]))
    case.check(total(terms), tolerance[torch.float64])


def test_against_scipy():
    s, t = torch.randn(2, 6, 5, dtype=torch.float64)
    xent = -(softmax(t.numpy() / 3, axis=1) * log_softmax(s.numpy(), axis=1)).sum(1).mean()
    assert soft_cross_entropy(s, t, 3.0).item() == pytest.approx(xent, rel=1e-9)
    kld = entropy(softmax(s.numpy() / 3, axis=1), softmax(t.numpy() / 3, axis=1), axis=1).mean()
    assert reverse_divergence(s, t, 3.0).item() == pytest.approx(kld, rel=1e-9)


def test_the_divergence_vanishes_where_the_student_equals_the_teacher():
    t = torch.randn(4, 10, dtype=torch.float64)
    assert reverse_divergence(t, t, 2.0).item() == 0


def test_the_sum_bears_its_own_rate(make_batch):
    """Weighted by 1 / (batch * classes), its gradient does not grow with the batch; its value does."""
    s, t = torch.randn(2, 6, 10)
    (value, weight) = SummedSquares()(Output(s), Output(t), make_batch())["mse"]
    (twice, half) = SummedSquares()(Output(s.repeat(2, 1)), Output(t.repeat(2, 1)), make_batch(12))["mse"]
    assert twice.item() == pytest.approx(2 * value.item())
    assert (weight, half) == (1 / 60, 1 / 120)


@pytest.mark.parametrize(
    "loss", [summed_squares, lambda s, t: soft_cross_entropy(s, t, 2.0), lambda s, t: reverse_divergence(s, t, 2.0)]
)
def test_gradient(loss):
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, t), s.requires_grad_())


@pytest.mark.parametrize("loss", ["xent", "kld"])
def test_large_logits_stay_finite(loss, make_batch, total):
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    terms = EasyTransfer(loss=loss)(Output(s), Output(-s.detach()), make_batch(1))
    total(terms).backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()
