from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.reviewkd import Fusion, ReviewKD, hierarchical_context_loss
from torch import nn

from kdbench.method import Incompatible


@pytest.mark.parametrize(("size", "pooled"), [(8, (4, 2, 1)), (4, (2, 1)), (2, (1,)), (1, ())])
def test_hierarchical_context_loss_against_numpy(size, pooled):
    s, t = torch.randn(2, 3, 5, size, size, dtype=torch.float64)
    value, weight, sum_ = ((s - t).numpy() ** 2).mean(), 1.0, 1.0
    for n in pooled:
        k = size // n
        d = (s - t).numpy().reshape(3, 5, n, k, n, k).mean((3, 5))
        weight /= 2
        value += weight * (d**2).mean()
        sum_ += weight
    assert hierarchical_context_loss(s, t).item() == pytest.approx(value / sum_, rel=1e-9)


def test_gradient():
    s, t = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: hierarchical_context_loss(s, t), s.requires_grad_())


def test_fusion_against_its_parts():
    fusion = Fusion(3, 4, 6, deepest=False)
    x, deeper = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)
    out, on = fusion(x, deeper, (4, 4))
    x = fusion.reduce(x).detach()
    up = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert fusion.attention is not None
    weight, bias = fusion.attention.weight.detach().numpy()[:, :, 0, 0], fusion.attention.bias.detach().numpy()
    both = np.concatenate([x.numpy(), up.numpy()], axis=1)
    z = 1 / (1 + np.exp(-np.einsum("oc,bchw->bohw", weight, both) - bias[:, None, None]))
    expected = torch.from_numpy(x.numpy() * z[:, :1] + up.numpy() * z[:, 1:])
    torch.testing.assert_close(on, expected)
    torch.testing.assert_close(out, fusion.expand(expected))


def test_layers(signature, data):
    method = ReviewKD()
    method.setup(signature(), signature(channels=(6, 8, 12)), data)
    expected = 0
    middle = 16
    for i, (s, t) in enumerate([(4, 6), (8, 8), (16, 12), (16, 12)]):
        attention = 2 * middle * 2 + 2 if i < 3 else 0
        expected += s * middle + 2 * middle + middle * t * 9 + 2 * t + attention
    assert sum(p.numel() for p in method.parameters()) == expected
    assert method.fusions[3].attention is None


def test_no_more_than_512_channels_in_the_middle(signature, data):
    net = signature(channels=(4, 8, 600))
    method = ReviewKD()
    method.setup(net, net, data)
    assert {fusion.reduce[0].out_channels for fusion in method.fusions} == {512}


def test_goes_from_deep_to_shallow(signature, data, output, make_batch):
    method = ReviewKD()
    net = signature()
    method.setup(net, net, data)
    s, t = output(net, ReviewKD.reads), output(net, ReviewKD.reads)
    value, _ = method(s, t, make_batch())["review"]
    f = method.fusions
    out, on = f[3](s.embedding[:, :, None, None], None, (1, 1))
    expected = hierarchical_context_loss(out, t.embedding[:, :, None, None])
    for i, size in ((2, 2), (1, 4), (0, 8)):
        out, on = f[i](s.pre_activations[i], on, (size, size))
        expected = expected + hierarchical_context_loss(out, t.pre_activations[i])
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0.1), (9, 1.0), (19, 2.0), (100, 2.0)])
def test_the_weight_warms_up(epoch, weight, signature, data, output, make_batch):
    method = ReviewKD(review_weight=2.0)
    net = signature()
    method.setup(net, net, data)
    out = output(net, ReviewKD.reads)
    assert method(out, out, make_batch(epoch=epoch))["review"][1].item() == pytest.approx(weight)


def test_reads_a_batch_of_one(signature, data, output, make_batch):
    """The embedding is one value a channel then, which has no batch variance."""
    method = ReviewKD()
    net = signature()
    method.setup(net, net, data)
    out = output(net, ReviewKD.reads, 1)
    assert method(out, out, make_batch(1))["review"][0].isfinite()
    assert all(m.running_mean.isfinite().all() for m in method.modules() if isinstance(m, nn.BatchNorm2d))


def test_refuses_networks_without_pre_activation_taps(signature, data):
    with pytest.raises(Incompatible, match=r"^reviewkd needs pre-activation taps; vit has none$"):
        ReviewKD().setup(signature("vit", pre=False), signature(), data)
