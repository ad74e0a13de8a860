from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.pkt import PKT, pkt_loss
from scipy.spatial.distance import cdist

from kdbench.method import Incompatible, Output


@pytest.mark.parametrize("name", ["pkt_a", "pkt_b"])
def test_golden(name, golden, tolerance):
    case = golden(name)
    [s] = case.leaves("in_student")
    case.check(pkt_loss(s, case["in_teacher"]), tolerance[torch.float64])


def test_against_scipy_cosines():
    s, t = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    p_s, p_t = ((2 - cdist(e.numpy(), e.numpy(), "cosine")) / 2 for e in (s, t))
    p_s, p_t = (p / p.sum(1, keepdims=True) for p in (p_s, p_t))
    expected = np.mean(p_t * np.log(p_t / p_s))
    assert pkt_loss(s, t, eps=1e-14).item() == pytest.approx(expected, rel=1e-9)


def test_gradient():
    s, t = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: pkt_loss(s, t), s.requires_grad_())


@pytest.mark.parametrize("zeros", [slice(0, 1), slice(0, 3), slice(None)])
def test_zero_rows_have_no_gradient(zeros):
    s = torch.randn(6, 4)
    s[zeros] = 0
    s.requires_grad_()
    loss = pkt_loss(s, torch.randn(6, 8))
    loss.backward()
    assert loss.isfinite()
    assert s.grad is not None
    assert (s.grad[zeros] == 0).all()
    assert s.grad.abs().max() < 1


def test_is_zero_for_one_image():
    assert pkt_loss(torch.randn(1, 4), torch.randn(1, 8)).item() == 0


def test_falls_as_the_batch_grows():
    """A mean over B^2 entries of rows that sum to 1: the weight 30000 belongs to B = 64."""
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 512, 8, generator=generator, dtype=torch.float64)
    ratio = pkt_loss(s[:64], t[:64]) / pkt_loss(s, t)
    assert 6 < ratio.item() < 10


@pytest.mark.parametrize("missing", ["student", "teacher"])
def test_refuses_a_network_without_an_embedding(missing, signature, data):
    networks = {"student": signature(), "teacher": signature()}
    networks[missing] = type(signature())("flat", "mlp", 10, {})
    with pytest.raises(Incompatible, match=r"^pkt needs an embedding; flat has none$"):
        PKT().setup(networks["student"], networks["teacher"], data)


def test_default_weights(make_batch):
    out = Output(torch.randn(6, 10), {"embedding": torch.randn(6, 4)})
    weights = {name: weight for name, (_, weight) in PKT()(out, out, make_batch()).items()}
    assert weights == {"ce": 1.0, "pkt": 30000.0}
