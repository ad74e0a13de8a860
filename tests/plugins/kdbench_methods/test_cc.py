from __future__ import annotations

import pytest
import torch
from kdbench_methods.cc import CC, correlation_loss

from kdbench.method import Incompatible, Signature


def test_golden(golden, tolerance):
    case = golden("cc_after_embedding")
    [s] = case.leaves("in_student")
    case.check(correlation_loss(s, case["in_teacher"]), tolerance[torch.float64])


def test_against_a_loop():
    s, t = torch.randn(2, 5, 3, dtype=torch.float64)
    d = (s - t).tolist()
    products = [sum(abs(a) * abs(b) for a, b in zip(d[i], d[i + 1], strict=True)) for i in range(4)]
    assert correlation_loss(s, t).item() == pytest.approx(sum(products) / 4, rel=1e-12)


def test_gradient():
    s, t = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(correlation_loss, (s.requires_grad_(), t.requires_grad_()))


def test_a_single_image_gives_zero():
    assert correlation_loss(torch.randn(1, 3), torch.randn(1, 3)).item() == 0


def test_depends_on_the_order_of_the_batch_and_says_so():
    s, t = torch.randn(2, 6, 3, dtype=torch.float64)
    swapped = [1, 0, 2, 3, 4, 5]
    assert not torch.isclose(correlation_loss(s, t), correlation_loss(s[swapped], t[swapped]))
    assert "batch-order" in CC.expected_failures


def test_both_embeddings_go_through_a_trained_layer(signature, data):
    method = CC()
    method.setup(signature(), signature(channels=(4, 8, 24)), data)
    assert sum(p.numel() for p in method.parameters()) == (16 + 1) * 128 + (24 + 1) * 128


def test_refuses_a_network_without_an_embedding(signature, data):
    with pytest.raises(Incompatible, match=r"^cc needs an embedding; flat has none$"):
        CC().setup(signature(), Signature("flat", "mlp", 10, {}), data)
