from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.ft import FT, Paraphraser, channel_factor, factor_loss, full_factor, translator
from kdbench_methods.pairing import pool_to_smaller
from torch import nn

from kdbench.method import Incompatible, Signature, TapSignature


@pytest.mark.parametrize("name", ["ft_p1_2_p2_1", "ft_p1_2_p2_1_pool", "ft_p1_2_p2_2"])
def test_golden(name, golden, tolerance):
    case = golden(name)
    p1, p2 = int(case["p1"]), int(case["p2"])
    [s] = case.leaves("in_student")
    f_s, f_t = pool_to_smaller(s, case["in_teacher"])
    case.check(factor_loss(channel_factor(f_s, p1), channel_factor(f_t, p1), p2), tolerance[torch.float64])


def test_golden_of_the_original_form(golden, tolerance):
    case = golden("ft_paper_l1")
    [s] = case.leaves("in_student")
    case.check(factor_loss(full_factor(s), full_factor(case["in_teacher"])), tolerance[torch.float64])


@pytest.mark.parametrize(("p1", "p2"), [(2, 1), (1, 2), (3, 1)])
def test_against_a_loop(p1, p2):
    s, t = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    rows = []
    for a, b in zip(s.numpy(), t.numpy(), strict=True):
        a, b = ((x**p1).mean(0).ravel() for x in (a, b))
        rows.append(np.abs(a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** p2)
    loss = factor_loss(channel_factor(s, p1), channel_factor(t, p1), p2)
    assert loss.item() == pytest.approx(np.mean(rows), rel=1e-9)


@pytest.mark.parametrize("factor", [channel_factor, full_factor])
def test_gradient(factor):
    s, t = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: factor_loss(factor(s), factor(t)), s.requires_grad_())


@pytest.mark.parametrize("factor", [channel_factor, full_factor])
def test_a_dead_map_has_no_gradient(factor):
    s = torch.zeros(3, 4, 2, 2, requires_grad=True)
    loss = factor_loss(factor(s), factor(torch.randn(3, 4, 2, 2)))
    loss.backward()
    assert loss.isfinite()
    assert s.grad is not None
    assert (s.grad == 0).all()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def resnet(name: str) -> Signature:
    """The last stage of a CIFAR ResNet on 32x32 images."""
    return Signature(name, "resnet", 100, {"stage3": TapSignature((64, 8, 8), True)})


def test_parameter_counts_of_resnet56_to_resnet20(data):
    method = FT()
    method.setup(resnet("resnet20"), resnet("resnet56"), data)
    assert parameters(method.paraphraser) == 129_312
    assert parameters(method.translator) == 64_896


def test_the_paraphraser_has_six_leaky_layers_without_normalisation():
    paraphraser = Paraphraser(8)
    assert paraphraser.decoder is not None
    layers = [*paraphraser.encoder, *paraphraser.decoder]
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.LeakyReLU] * 3 + [nn.ConvTranspose2d, nn.LeakyReLU] * 3
    assert [layer.out_channels for layer in layers[::2]] == [8, 4, 4, 4, 8, 8]
    assert {layer.negative_slope for layer in layers[1::2]} == {0.1}
    assert paraphraser(torch.randn(2, 8, 5, 5)).shape == (2, 8, 5, 5)


def test_the_translator_normalises_each_of_its_three_layers():
    layers = list(translator(6, 8))
    assert [isinstance(layer, nn.BatchNorm2d) for layer in layers] == [False, True, False] * 3
    assert [layer.out_channels for layer in layers[::3]] == [6, 4, 4]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in translator(6, 8, batch_norm=False))


@pytest.mark.parametrize(("family", "lr"), [("resnet", 0.01), ("wrn", 0.01), ("vgg", None)])
def test_the_paraphraser_stage(family, lr, signature, data, output, make_batch):
    method = FT(paraphraser_epochs=5)
    net = signature(family=family)
    method.setup(net, signature(), data)
    [stage] = method.stages()
    assert (stage.name, stage.epochs, stage.lr, stage.uses_student) == ("paraphraser", 5, lr, False)
    assert stage.trains == ("paraphraser",)
    t = output(net, stage.reads)
    [(value, weight)] = stage.loss(None, t, make_batch()).values()
    assert weight == 1.0
    torch.testing.assert_close(value, (method.paraphraser(t["stage3"]) - t["stage3"]).square().mean())


def test_afterwards_the_encoder_alone_is_kept_and_frozen(signature, data):
    trained, resumed = FT(), FT()
    for method in (trained, resumed):
        method.setup(signature(), signature(), data)
        method.after_stage("paraphraser")
    assert not any("decoder" in name for name in trained.state_dict())
    assert not any(p.requires_grad for p in trained.paraphraser.parameters())
    assert all(p.requires_grad for p in trained.translator.parameters())
    resumed.load_state_dict(trained.state_dict())
    resumed.after_stage("paraphraser")
    assert resumed.state_dict().keys() == trained.state_dict().keys()
    with pytest.raises(RuntimeError, match="decoder is dropped"):
        trained.paraphraser(torch.randn(1, 16, 2, 2))


def test_refuses_a_network_without_maps(signature, data):
    with pytest.raises(Incompatible, match=r"^ft needs a last stage map; flat has none$"):
        FT().setup(Signature("flat", "mlp", 10, {}), signature(), data)
