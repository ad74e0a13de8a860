"""The angles of all triples, in blocks, with a derivative written by hand: compared with unit vectors and autograd."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kdbench_methods import angles
from kdbench_methods.angles import Relations, blocks
from kdbench_methods.gram import centred
from kdbench_methods.rkd import angle_loss
from scipy.spatial.distance import cdist
from torch import Tensor


def plain(s: Tensor, t: Tensor) -> Tensor:
    """The paper's formula in float64, from the unit vectors of all differences; equal points have none."""

    def cosines(e: Tensor) -> Tensor:
        difference = e[None] - e[:, None]
        equal = (difference == 0).all(-1, keepdim=True)
        unit = torch.where(equal, 0.0, difference / torch.where(equal, 1.0, difference).norm(dim=-1, keepdim=True))
        return torch.einsum("ijd,ikd->ijk", unit, unit)

    return F.smooth_l1_loss(cosines(s.double()), cosines(t.double()))


def derivatives(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Of the loss under test and of the plain formula, in float64."""
    return tuple(torch.autograd.grad(loss(s, t), s)[0].double() for loss in (angle_loss, plain))


def relations(e: Tensor) -> Relations:
    return Relations.of(centred(e), e.dtype)


@pytest.fixture(params=[2**21, 7 * 81, 1], ids=["one block", "a smaller last block", "a vertex at a time"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(angles, "BLOCK", request.param)


def test_cosines_against_all_triples():
    e = torch.randn(6, 4, dtype=torch.float64)
    x = e.numpy()
    expected = np.zeros((6, 6, 6))
    for i, j, k in itertools.product(range(6), repeat=3):
        if i not in (j, k):
            a, b = x[j] - x[i], x[k] - x[i]
            expected[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    found = relations(e)
    np.testing.assert_allclose(found.cosines(slice(0, 6)).numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.cosines(slice(2, 5)).numpy(), expected[2:5], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("distance", [1e-2, 3e-3, 1e-3, 1e-4, 2e-5])
def test_near_coincident_pairs_keep_their_angles(distance):
    """Two embeddings at this share of their norm, in float32: unit vectors in float64 are the reference."""
    # Multiples of 2^-23 below 1 are exact in float32.
    e = (torch.rand(8, 16) * 2**22).round() * 2.0**-23
    step = torch.randn(16)
    e[1] = e[0] + (step / step.norm() * e[0].norm() * distance * 2**23).round() * 2.0**-23
    x = e.double().numpy()
    d = cdist(x, x)
    unit = (x[None] - x[:, None]) / np.where(d > 0, d, 1)[..., None]
    found = relations(e).cosines(slice(0, 8)).numpy()
    np.testing.assert_allclose(found, unit @ unit.transpose(0, 2, 1), rtol=0, atol=1e-4)


def test_blocks_cover_every_vertex_once():
    for B in (1, 2, 100, 128, 129, 256, 2000):
        parts = [range(B)[part] for part in blocks(B)]
        assert list(itertools.chain(*parts)) == list(range(B))
        assert all(len(part) * B * B <= max(angles.BLOCK, B * B) for part in parts)
    assert [len(list(blocks(B))) for B in (64, 128, 129, 256)] == [1, 1, 2, 8]


@pytest.mark.usefixtures("_blocks")
def test_value_and_derivative_against_the_plain_formula():
    s, t = torch.randn(9, 5, dtype=torch.float64).requires_grad_(), torch.randn(9, 7, dtype=torch.float64)
    torch.testing.assert_close(angle_loss(s, t), plain(s, t), rtol=1e-10, atol=0)
    torch.testing.assert_close(*derivatives(s, t), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_blocks")
def test_gradient():
    s, t = torch.randn(9, 3, dtype=torch.float64).requires_grad_(), torch.randn(9, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: 3 * angle_loss(s, t), s)


def test_large_differences_have_the_slope_of_an_absolute_value():
    """Cosines of opposite signs differ by more than 1, where smooth L1 is linear."""
    s = torch.tensor([[0.0, 0], [1, 0], [2, 0.1], [0.3, 1]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[0.0, 0], [1, 0.1], [-2, 0], [0.1, -1]], dtype=torch.float64)
    found = [relations(e.detach()).cosines(slice(0, 4)) for e in (s, t)]
    assert (found[0] - found[1]).abs().max() > 1
    torch.testing.assert_close(angle_loss(s, t), plain(s, t), rtol=1e-10, atol=0)
    torch.testing.assert_close(*derivatives(s, t), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [8, 512])
def test_a_large_offset_and_a_small_spread_in_float32(width):
    """Embeddings of spread 1e-3 around 100: the reference sees the same rounded values."""
    s, t = ((100 + 1e-3 * torch.randn(32, width)).requires_grad_(), 100 + 1e-3 * torch.randn(32, width))
    torch.testing.assert_close(angle_loss(s, t).double(), plain(s, t), rtol=1e-4, atol=0)
    found, expected = derivatives(s, t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.usefixtures("_blocks")
def test_equal_points_against_the_plain_formula():
    """Their difference has no direction: a cosine of 0, and no gradient through it."""
    s, t = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    s[3] = s[5] = s[8]
    t[3] = t[1]
    s.requires_grad_()
    torch.testing.assert_close(angle_loss(s, t), plain(s, t), rtol=1e-10, atol=0)
    torch.testing.assert_close(*derivatives(s, t), rtol=1e-9, atol=1e-12)


def test_several_steps_of_an_optimiser_against_the_plain_formula():
    images, t = torch.randn(12, 10, dtype=torch.float64), torch.randn(12, 6, dtype=torch.float64)
    start = torch.nn.Linear(10, 5, dtype=torch.float64)
    seen: list[list[float]] = []
    for loss in (angle_loss, plain):
        network = torch.nn.Linear(10, 5, dtype=torch.float64)
        network.load_state_dict(start.state_dict())
        optimizer = torch.optim.SGD(network.parameters(), lr=5.0, momentum=0.9)
        seen.append([])
        for _ in range(6):
            optimizer.zero_grad()
            value = loss(network(images), t)
            value.backward()
            optimizer.step()
            seen[-1].append(value.item())
    assert seen[0][-1] < 0.8 * seen[0][0]
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-9)


def test_half_precision_does_not_overflow():
    """Distances of 1e-3: their reciprocals squared exceed the range of float16."""
    s = (1e-3 * torch.randn(8, 4)).half().requires_grad_()
    t = torch.randn(8, 4)
    torch.testing.assert_close(angle_loss(s, t).double(), plain(s, t), rtol=1e-2, atol=0)


def test_a_second_derivative_is_refused():
    s, t = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    loss = angle_loss(s, t)
    with pytest.raises(RuntimeError, match=r"^the angle term of RKD has no second derivative; use create_graph=False$"):
        torch.autograd.grad(loss, s, create_graph=True)


def test_nothing_depends_on_values_or_waits_for_them():
    """On the meta device, reading a value or choosing by one raises an error; a captured CUDA graph forbids both."""
    s, t = torch.randn(300, 8, device="meta", requires_grad=True), torch.randn(300, 16, device="meta")
    angle_loss(s, t).backward()
    assert s.grad is not None
    assert s.grad.shape == (300, 8)
    with pytest.raises(NotImplementedError):
        s.detach()[s.detach() > 0]


def test_only_the_derivative_is_kept_for_the_backward_pass():
    kept: list[int] = []
    s, t = torch.randn(16, 3, requires_grad=True), torch.randn(16, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        angle_loss(s, t)
    assert kept == [16 * 3]
