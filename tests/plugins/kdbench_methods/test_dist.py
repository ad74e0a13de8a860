from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.dist import DIST, pearson, relation_losses
from scipy.special import softmax
from scipy.stats import pearsonr

from kdbench.method import Output


def test_golden(golden, tolerance):
    case = golden("dist_T4")
    [s] = case.leaves("in_student")
    inter, intra = relation_losses(s, case["in_teacher"], 4.0)
    case.check(inter + intra, tolerance[torch.float64])


def test_against_scipy():
    s, t = 3 * torch.randn(2, 6, 5, dtype=torch.float64)
    p, q = (softmax(x.numpy() / 2, axis=1) for x in (s, t))
    inter, intra = relation_losses(s, t, 2.0)
    rows = np.mean([pearsonr(p[i], q[i])[0] for i in range(6)])
    columns = np.mean([pearsonr(p[:, j], q[:, j])[0] for j in range(5)])
    assert inter.item() == pytest.approx(4 * (1 - rows), rel=1e-9)
    assert intra.item() == pytest.approx(4 * (1 - columns), rel=1e-9)


@pytest.mark.parametrize("index", [0, 1])
def test_gradient(index):
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: relation_losses(s, t, 4.0)[index], s.requires_grad_())


def test_a_constant_row_has_no_correlation_and_no_gradient():
    # The mean of tenths is not a tenth: the row is constant but for rounding.
    x = torch.full((1, 7), 0.1, requires_grad=True)
    assert (x - x.mean()).abs().max() > 0
    value = pearson(x, torch.randn(1, 7))
    value.sum().backward()
    assert value.item() == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_default_weights(make_batch):
    out = Output(torch.randn(6, 10))
    weights = {name: weight for name, (_, weight) in DIST()(out, out, make_batch()).items()}
    assert weights == {"ce": 1.0, "inter": 2.0, "intra": 2.0}
