from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.at import AT, attention_loss

from kdbench.method import Incompatible


@pytest.mark.parametrize("name", ["at_stage", "at_stage_pool"])
def test_golden(name, golden, tolerance):
    case = golden(name)
    [s] = case.leaves("in_student")
    case.check(attention_loss(s, case["in_teacher"]), tolerance[torch.float64])


def test_against_a_loop():
    s, t = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 5, 4, 4, dtype=torch.float64)
    rows = []
    for a, b in zip(s.numpy(), t.numpy(), strict=True):
        a, b = ((x**2).mean(0) for x in (a, b))
        rows.append((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2)
    assert attention_loss(s, t).item() == pytest.approx(np.mean(rows), rel=1e-9)


def test_gradient():
    s, t = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: attention_loss(s, t), s.requires_grad_())


def test_sums_the_stages(signature, data, output, make_batch):
    net = signature()
    s, t = output(net, AT.reads), output(net, AT.reads)
    value, weight = AT()(s, t, make_batch())["at"]
    expected = [attention_loss(a, b) for a, b in zip(s.stages, t.stages, strict=True)]
    torch.testing.assert_close(value, expected[0] + expected[1] + expected[2])
    assert weight == 1000.0


def test_refuses_networks_of_different_depth(signature, data):
    teacher = signature("deep", channels=(4, 8, 16, 32), sizes=(8, 4, 2, 1))
    with pytest.raises(Incompatible, match=r"^at pairs stages one to one; teacher deep has 4, student net has 3$"):
        AT().setup(signature(), teacher, data)
