from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.dkd import DKD, decoupled_losses
from kdbench_methods.kd import soft_target_loss
from scipy.special import softmax
from scipy.stats import entropy

from kdbench.method import Output


def test_golden(golden, tolerance):
    case = golden("dkd_T4_a1_b8")
    [s] = case.leaves("in_student")
    tckd, nckd = decoupled_losses(s, case["in_teacher"], case["in_target"], 4.0)
    case.check(tckd + 8 * nckd, tolerance[torch.float64])


def test_against_scipy():
    s, t = torch.randn(2, 6, 5, dtype=torch.float64)
    y = np.array([0, 4, 2, 2, 1, 3])
    p, q = (softmax(x.numpy() / 2, axis=1) for x in (s, t))
    true = np.eye(5, dtype=bool)[y]
    binary = [np.stack([x[true], 1 - x[true]], axis=1) for x in (q, p)]
    others = [x[~true].reshape(6, 4) for x in (q, p)]
    tckd, nckd = decoupled_losses(s, t, torch.from_numpy(y), 2.0)
    assert tckd.item() == pytest.approx(4 * entropy(*binary, axis=1).mean(), rel=1e-9)
    # scipy's entropy divides by the sum, which makes the others' probabilities conditional.
    assert nckd.item() == pytest.approx(4 * entropy(*others, axis=1).mean(), rel=1e-9)


def test_is_kd_where_the_others_weigh_as_much_as_the_teacher_doubts():
    """Equation 6: KD = TCKD + (1 - p_t) NCKD, for one image."""
    s, t = torch.randn(2, 1, 5, dtype=torch.float64)
    y = torch.tensor([3])
    tckd, nckd = decoupled_losses(s, t, y, 4.0)
    doubt = 1 - (t / 4).softmax(1)[0, 3]
    torch.testing.assert_close(tckd + doubt * nckd, soft_target_loss(s, t, 4.0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("index", [0, 1])
def test_gradient(index):
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    y = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: decoupled_losses(s, t, y, 4.0)[index], s.requires_grad_())


def test_large_logits_stay_finite():
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    for loss in decoupled_losses(s, -s.detach(), torch.tensor([0]), 4.0):
        loss.backward(retain_graph=True)
        assert loss.isfinite()
    assert s.grad is not None
    assert s.grad.isfinite().all()


@pytest.mark.parametrize(("epoch", "ramp"), [(0, 0.05), (9, 0.5), (19, 1.0), (200, 1.0)])
def test_the_weights_warm_up(epoch, ramp, make_batch):
    out = Output(torch.randn(6, 10))
    terms = DKD()(out, out, make_batch(epoch=epoch))
    assert terms["tckd"][1].item() == pytest.approx(ramp)
    assert terms["nckd"][1].item() == pytest.approx(8 * ramp)


def test_without_warm_up_the_weight_is_full_from_the_start(make_batch):
    out = Output(torch.randn(6, 10))
    assert DKD(warmup_epochs=0)(out, out, make_batch())["tckd"][1].item() == 1.0
