from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.vid import VID, TeacherMap, negative_log_likelihood
from scipy.stats import norm

from kdbench.method import Incompatible, Output, Signature


@pytest.mark.parametrize("name", ["vid_same", "vid_student_larger", "vid_teacher_larger"])
def test_golden(name, golden, tolerance):
    case = golden(name)
    predictor = TeacherMap(6, 12, 5.0).double()
    predictor.load_state_dict({key[2:]: value for key, value in case.items() if key.startswith("p_")})
    [s] = case.leaves("in_student")
    loss = predictor(s, case["in_teacher"])
    case.check(loss, tolerance[torch.float64], dict(predictor.named_parameters()))


def test_is_a_gaussian_log_likelihood_but_for_its_constant():
    mu, t = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    log_scale = torch.randn(4, dtype=torch.float64)
    scale = np.sqrt(np.logaddexp(0, log_scale.numpy()) + 1e-5)[:, None, None]
    expected = -norm.logpdf(t.numpy(), mu.numpy(), scale).mean() - np.log(2 * np.pi) / 2
    assert negative_log_likelihood(mu, t, log_scale).item() == pytest.approx(expected, rel=1e-9)


def test_gradient():
    mu, t = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    inputs = (mu.requires_grad_(), t, torch.randn(3, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(negative_log_likelihood, inputs)


def test_the_variance_does_not_overflow():
    mu = torch.zeros(1, 2, 1, 1)
    loss = negative_log_likelihood(mu, mu, torch.tensor([100.0, 1000.0]))
    assert loss.item() == pytest.approx((np.log(100) + np.log(1000)) / 4, rel=1e-5)


def test_the_variance_starts_at_the_setting():
    predictor = TeacherMap(2, 3, 5.0)
    variance = torch.nn.functional.softplus(predictor.log_scale) + 1e-5
    torch.testing.assert_close(variance, torch.full((3,), 5.0))


def test_its_parameters_are_registered(signature, data):
    method = VID()
    method.setup(signature(), signature(channels=(6, 8, 12)), data)
    names = dict(method.named_parameters())
    assert sum("log_scale" in name for name in names) == 3
    # Per stage C_s*C_t + 2*C_t^2 weights and C_t variances.
    expected = sum(s * t + 2 * t * t + t for s, t in [(4, 6), (8, 8), (16, 12)])
    assert sum(p.numel() for p in names.values()) == expected


def test_sums_the_stages(signature, data, output, make_batch, total):
    method = VID(ce_weight=0.0, vid_weight=2.0)
    net = signature()
    method.setup(net, net, data)
    s, t = output(net, VID.reads), output(net, VID.reads)
    stages = [p(a, b) for p, a, b in zip(method.predictors, s.stages, t.stages, strict=True)]
    torch.testing.assert_close(total(method(s, t, make_batch())), 2 * (stages[0] + stages[1] + stages[2]))


def test_refuses_networks_of_different_depth(signature, data):
    teacher = signature("deep", channels=(4, 8, 16, 32), sizes=(8, 4, 2, 1))
    with pytest.raises(Incompatible, match=r"^vid pairs stages one to one; teacher deep has 4, student net has 3$"):
        VID().setup(signature(), teacher, data)


def test_refuses_a_network_without_stages(signature, data):
    with pytest.raises(Incompatible, match=r"^vid needs stage maps; flat has none$"):
        VID().setup(Signature("flat", "mlp", 10, {}), signature(), data)


def test_refuses_a_variance_below_its_floor():
    with pytest.raises(ValueError, match=r"^initial_variance must exceed 1e-05, got 1e-06$"):
        VID(initial_variance=1e-6)


def test_reads_nothing_but_stages():
    net = Output(torch.zeros(1, 2), {"stage1": torch.zeros(1), "stage1/pre": torch.ones(1)})
    assert [tap.item() for tap in net.stages] == [0.0]
