from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.rkd import RKD, angle_loss, distance_loss, relative_distances
from scipy.spatial.distance import cdist

from kdbench.method import Incompatible, Output


@pytest.mark.parametrize("name", ["rkd_a_w25_50", "rkd_b_w25_50"])
def test_golden_sum(name, golden, tolerance):
    case = golden(name)
    [s] = case.leaves("in_student")
    t = case["in_teacher"]
    case.check(25 * distance_loss(s, t) + 50 * angle_loss(s, t), tolerance[torch.float64])


@pytest.mark.parametrize(("name", "loss"), [("rkd_distance_only", distance_loss), ("rkd_angle_only", angle_loss)])
def test_golden_terms(name, loss, golden, tolerance):
    case = golden(name)
    [s] = case.leaves("in_student")
    case.check(loss(s, case["in_teacher"]), tolerance[torch.float64])


def test_distances_against_scipy():
    e = torch.randn(9, 5, dtype=torch.float64)
    d = cdist(e.numpy(), e.numpy())
    np.testing.assert_allclose(relative_distances(e).numpy(), d / d[d > 0].mean(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_gradient(loss):
    s, t = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, t), s.requires_grad_())


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_a_large_offset_does_not_cancel_digits(loss):
    """Embeddings of spread 1e-3 around 100, where naive squared distances are off by 500 %."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(16, 8, generator=generator)
    # Multiples of 2^-17 around 128 are exact in float32, so that nothing but the loss itself rounds.
    s = 128 + (spread * 128).round() * 2.0**-17
    t = torch.randn(16, 8, generator=generator)
    expected = loss(s.double() - 128, t.double())
    torch.testing.assert_close(loss(s, t).double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicate_rows_have_sane_gradients(loss, dtype):
    s = torch.randn(8, 16, dtype=dtype)
    s[3] = s[5]
    s.requires_grad_()
    value = loss(s, torch.randn(8, 32, dtype=dtype))
    value.backward()
    assert value.isfinite()
    assert s.grad is not None
    assert s.grad.abs().max() < 1


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_batch_without_spread(loss, rows):
    """One image, or several that give the same embedding."""
    s = torch.full((rows, 3), 0.1, requires_grad=True)
    value = loss(s, torch.randn(rows, 3))
    value.backward()
    assert value.isfinite()
    assert s.grad is not None
    assert (s.grad == 0).all()


@pytest.mark.parametrize("distance", [1e-2, 3e-3, 1e-3, 1e-4, 2e-5])
def test_near_coincident_pairs_keep_their_distance(distance):
    """Two embeddings at this share of their norm, in float32: scipy in float64 is the reference."""
    generator = torch.Generator().manual_seed(0)
    # Multiples of 2^-23 below 1 are exact in float32.
    e = (torch.rand(8, 16, generator=generator) * 2**22).round() * 2.0**-23
    step = torch.randn(16, generator=generator)
    e[1] = e[0] + (step / step.norm() * e[0].norm() * distance * 2**23).round() * 2.0**-23
    x = e.double().numpy()
    d = cdist(x, x)
    np.testing.assert_allclose(relative_distances(e).numpy(), d / d[d > 0].mean(), rtol=1e-4)


def test_pairs_that_differ_by_rounding_coincide():
    """Their direction would be noise, and its gradient huge."""
    s = torch.randn(8, 16)
    s[3] = s[5] * (1 + torch.finfo(s.dtype).eps)
    s.requires_grad_()
    (distance_loss(s, torch.randn(8, 32)) + angle_loss(s, torch.randn(8, 32))).backward()
    assert relative_distances(s)[3, 5] == 0
    assert s.grad is not None
    assert s.grad.abs().max() < 1


@pytest.mark.parametrize("name", ["rkd", "rkd/distance", "rkd/angle"])
@pytest.mark.parametrize("missing", ["student", "teacher"])
def test_refuses_a_network_without_an_embedding(name, missing, signature, data, build):
    networks = {"student": signature(), "teacher": signature()}
    networks[missing] = type(signature())("flat", "mlp", 10, {})
    with pytest.raises(Incompatible, match=r"^rkd needs an embedding; flat has none$"):
        build(name, networks["student"], networks["teacher"], data)


def test_a_term_without_weight_is_left_out(make_batch):
    out = Output(torch.randn(6, 10), {"embedding": torch.randn(6, 4)})
    assert list(RKD(distance_weight=0.0)(out, out, make_batch())) == ["ce", "angle"]
    assert list(RKD(angle_weight=0.0)(out, out, make_batch())) == ["ce", "distance"]


def test_default_weights(make_batch):
    out = Output(torch.randn(6, 10), {"embedding": torch.randn(6, 4)})
    weights = {name: weight for name, (_, weight) in RKD()(out, out, make_batch()).items()}
    assert weights == {"ce": 1.0, "distance": 25.0, "angle": 50.0}
