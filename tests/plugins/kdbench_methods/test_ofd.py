from __future__ import annotations

import pytest
import torch
from kdbench_methods.ofd import OFD, margins, partial_squares
from scipy.stats import norm, truncnorm

from kdbench.method import Incompatible


def test_margins_against_scipy():
    s = torch.tensor([0.5, -1.0, 2.0, 1.0], dtype=torch.float64)
    m = torch.tensor([0.3, -0.4, 1.5, 3.0], dtype=torch.float64)
    expected = [
        truncnorm.mean(-float("inf"), -b / abs(a), loc=b, scale=abs(a))
        for a, b in zip(s.tolist(), m.tolist(), strict=True)
    ]
    torch.testing.assert_close(margins(s, m), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_rare_negative_value_has_the_margin_of_three_deviations():
    s, m = torch.tensor([1.0, -0.5]), torch.tensor([3.2, 2.0])
    assert norm.cdf(-3.2) < 1e-3
    torch.testing.assert_close(margins(s, m), torch.tensor([-3.0, -1.5]))


def test_a_channel_without_spread_is_finite():
    torch.testing.assert_close(margins(torch.zeros(2), torch.tensor([0.7, -0.7])), torch.tensor([0.0, -0.7]))


def test_against_a_loop():
    s, t = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    margin = -torch.rand(4, dtype=torch.float64)
    expected = 0.0
    for i, c, y, x in torch.cartesian_prod(*map(torch.arange, s.shape)).tolist():
        a, b = s[i, c, y, x].item(), t[i, c, y, x].item()
        target = max(b, margin[c].item())
        if a > target or b > 0:
            expected += (a - target) ** 2
    assert partial_squares(s, t, margin).item() == pytest.approx(expected / 3, rel=1e-9)


def test_gradient():
    s, t = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    margin = -torch.rand(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: partial_squares(s, t, margin), s.requires_grad_())


def test_later_stages_weigh_more(signature, data, output, make_batch):
    method = OFD()
    net = signature()
    method.setup(net, net, data)
    s, t = output(net, OFD.reads), output(net, OFD.reads)
    value, weight = method(s, t, make_batch())["ofd"]
    stages = [c(a, b) for c, a, b in zip(method.connectors, s.pre_activations, t.pre_activations, strict=True)]
    torch.testing.assert_close(value, stages[0] / 4 + stages[1] / 2 + stages[2])
    assert weight == 0.001


def test_connectors_and_margins(signature, data):
    method = OFD()
    teacher = signature(channels=(6, 8, 12))
    method.setup(signature(), teacher, data)
    expected = sum(s * t + 2 * t for s, t in [(4, 6), (8, 8), (16, 12)])
    assert sum(p.numel() for p in method.parameters()) == expected
    margin = dict(method.named_buffers())["connectors.0.margin"]
    torch.testing.assert_close(margin, margins(*teacher.taps["stage1/pre"].batch_norm))
    assert (margin <= 0).all()


def test_refuses_a_teacher_that_does_not_tell_its_normalisation(signature, data):
    message = r"^ofd needs the teacher's batch normalisation before each activation; net does not provide it$"
    with pytest.raises(Incompatible, match=message):
        OFD().setup(signature(), signature(batch_norm=False), data)


def test_refuses_networks_without_pre_activation_taps(signature, data):
    with pytest.raises(Incompatible, match=r"^ofd needs pre-activation taps; vit has none$"):
        OFD().setup(signature("vit", pre=False), signature(), data)
