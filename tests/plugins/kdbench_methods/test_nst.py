from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.nst import NST, selectivity_loss

from kdbench.method import Incompatible


def test_golden(golden, tolerance):
    case = golden("nst_stage_pool")
    [s] = case.leaves("in_student")
    case.check(selectivity_loss(s, case["in_teacher"]), tolerance[torch.float64])


def test_against_a_loop():
    s, t = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(2, 4, 2, 2, dtype=torch.float64)
    rows = []
    for a, b in zip(s.flatten(2).numpy(), t.flatten(2).numpy(), strict=True):
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        kernels = [np.mean([(p @ q) ** 2 for p in x for q in y]) for x, y in ((a, a), (b, b), (a, b))]
        rows.append(kernels[0] + kernels[1] - 2 * kernels[2])
    assert selectivity_loss(s, t).item() == pytest.approx(np.mean(rows), rel=1e-9)


def test_gradient():
    s, t = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: selectivity_loss(s, t), s.requires_grad_())


def test_refuses_networks_of_different_depth(signature, data):
    teacher = signature("deep", channels=(4, 8, 16, 32), sizes=(8, 4, 2, 1))
    with pytest.raises(Incompatible, match=r"^nst pairs stages one to one; teacher deep has 4, student net has 3$"):
        NST().setup(signature(), teacher, data)
