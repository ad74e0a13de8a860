from __future__ import annotations

import pytest
import torch
from kdbench_methods.numerics import safe_norm, unit


def test_against_torch():
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(safe_norm(x, 1), x.norm(dim=1, keepdim=True))
    torch.testing.assert_close(unit(x, 1), torch.nn.functional.normalize(x))


@pytest.mark.parametrize("function", [safe_norm, unit])
def test_gradient(function):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(x, 1), x)


@pytest.mark.parametrize("function", [safe_norm, unit])
def test_a_zero_row_gives_zero_and_no_gradient(function):
    x = torch.zeros(2, 3)
    x[1] = 1
    x.requires_grad_()
    value = function(x, 1)
    value.sum().backward()
    assert (value[0] == 0).all()
    assert x.grad is not None
    assert (x.grad[0] == 0).all()
    assert x.grad[1].isfinite().all()
