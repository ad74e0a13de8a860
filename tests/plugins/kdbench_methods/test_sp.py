from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.sp import SP, similarity_loss

from kdbench.method import Incompatible, Signature


def test_golden(golden, tolerance):
    case = golden("sp")
    [s] = case.leaves("in_student")
    case.check(similarity_loss(s, case["in_teacher"]), tolerance[torch.float64])


def test_against_a_loop():
    s, t = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.randn(4, 5, 2, 2, dtype=torch.float64)
    G = []
    for f in (s.numpy(), t.numpy()):
        g = np.array([[(a * b).sum() for b in f] for a in f])
        G.append(g / np.linalg.norm(g, axis=1, keepdims=True))
    assert similarity_loss(s, t).item() == pytest.approx(((G[0] - G[1]) ** 2).sum() / 16, rel=1e-9)


def test_gradient():
    s, t = torch.randn(3, 2, 2, 2, dtype=torch.float64), torch.randn(3, 4, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: similarity_loss(s, t), s.requires_grad_())


def test_refuses_a_network_without_maps(signature, data):
    with pytest.raises(Incompatible, match=r"^sp needs a last stage map; flat has none$"):
        SP().setup(signature(), Signature("flat", "mlp", 10, {}), data)
