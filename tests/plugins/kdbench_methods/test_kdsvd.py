from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.kdsvd import KDSVD, main_directions, nearest_direction, singular_vector_loss

from kdbench.method import Incompatible
from kdbench.models.resnet import resnet


def test_directions_are_right_singular_vectors():
    f = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    found = main_directions(f, 2).numpy()
    for x, v in zip(f.flatten(2).mT.numpy(), found, strict=True):
        expected = np.linalg.svd(x)[2][:2].T
        np.testing.assert_allclose(np.abs(v.T @ expected), np.eye(2), atol=1e-9)


def test_their_gradient_is_the_decompositions():
    f = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, 2, dtype=torch.float64)
    # Squares do not know the sign of a vector, which is arbitrary.
    (w * main_directions(f, 2).square()).sum().backward()
    g = f.detach().clone().requires_grad_()
    v = torch.linalg.svd(g.flatten(2).mT, full_matrices=False)[2].mT[:, :, :2]
    (w * v.square()).sum().backward()
    assert f.grad is not None
    torch.testing.assert_close(f.grad, g.grad, rtol=1e-9, atol=1e-9)


def test_the_entry_of_largest_magnitude_is_positive():
    found = main_directions(torch.randn(6, 5, 4, 4, dtype=torch.float64), 4)
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_the_sign_that_the_decomposition_returns_changes_nothing(monkeypatch):
    """Neither value nor gradient: LAPACK and cuSOLVER, float32 and float64 choose differently."""
    generator = torch.Generator().manual_seed(0)
    s, t = ([torch.randn(3, c, 4, 4, dtype=torch.float64, generator=generator) for c in (5, 6, 7)] for _ in range(2))
    eigh = torch.linalg.eigh

    def with_random_signs(A):
        values, vectors = eigh(A)
        signs = torch.randint(0, 2, (len(A), 1, A.shape[2]), generator=generator) * 2 - 1
        return values, vectors * signs

    found = []
    for decompose in (eigh, *[with_random_signs] * 5):
        monkeypatch.setattr(torch.linalg, "eigh", decompose)
        leaves = [x.clone().requires_grad_() for x in s]
        loss = singular_vector_loss(leaves, t)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("seed", range(8))
def test_float32_agrees_with_float64(seed):
    """On a network's own maps, where some signs differ between the precisions' decompositions."""
    torch.manual_seed(seed)
    images = torch.randn(8, 1, 8, 8)
    networks = [resnet(depth=depth, classes=10, image_shape=(1, 8, 8)) for depth in (8, 14)]
    stages = ("stage1", "stage2", "stage3")
    with torch.no_grad():
        s, t = ([network(images, stages)[name] for name in stages] for network in networks)
    expected = singular_vector_loss([x.double() for x in s], [x.double() for x in t])
    torch.testing.assert_close(singular_vector_loss(s, t).double(), expected, rtol=1e-4, atol=0)


def test_gradient_through_the_fixed_sign():
    f = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: (w * main_directions(f, 2)).sum(), f)


def test_the_nearest_direction_up_to_its_sign():
    s = torch.eye(3)[None].repeat(2, 1, 1)
    t = torch.tensor([[0.1, -0.9, 0.3], [0.8, 0.1, 0.1]])
    expected = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(nearest_direction(s, t), expected)


def test_against_a_loop():
    s, t = ([torch.randn(2, c, 4, 4, dtype=torch.float64) for c in (5, 6, 7)] for _ in range(2))
    expected = 0.0
    for n in range(2):
        v_s, v_t = [], []
        for a, b in zip(s, t, strict=True):
            ours, theirs = (np.linalg.svd(x[n].flatten(1).T.numpy())[2] for x in (a, b))
            v_t.append(theirs[0] * np.sign(theirs[0][np.abs(theirs[0]).argmax()]))
            cosines = ours[:4] @ v_t[-1]
            best = np.abs(cosines).argmax()
            v_s.append(np.sign(cosines[best]) * ours[best])
        for i in (1, 2):
            ours, theirs = (np.exp(-((v[i][:, None] - v[i - 1][None]) ** 2) / 8) for v in (v_s, v_t))
            expected += ((ours - theirs) ** 2).sum() / 2
    assert singular_vector_loss(s, t).item() == pytest.approx(expected, rel=1e-9)


def test_a_dead_map_has_no_gradient():
    s = [torch.randn(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)]
    t = [torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)]
    for x in s:
        x.requires_grad_()
    loss = singular_vector_loss(s, t)
    loss.backward()
    assert loss.isfinite()
    assert s[1].grad is not None
    assert (s[1].grad == 0).all()


def test_refuses_other_channels(signature, data):
    message = (
        r"^kdsvd needs equal channels at all stages; "
        r"teacher wide has \[4, 8, 32\], student net has \[4, 8, 16\]$"
    )
    with pytest.raises(Incompatible, match=message):
        KDSVD().setup(signature(), signature("wide", channels=(4, 8, 32)), data)


def test_refuses_a_single_stage(signature, data):
    net = signature(channels=(4,), sizes=(8,))
    with pytest.raises(Incompatible, match=r"^kdsvd needs two stages or more; net has one$"):
        KDSVD().setup(net, net, data)
