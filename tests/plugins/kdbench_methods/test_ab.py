from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.ab import AB, boundary_loss, staged_boundary_loss
from torch import nn

from kdbench.method import Incompatible, Output, Signature


def test_golden(golden, tolerance):
    """The file's loss has the factor 3/1000 and is summed over stages."""
    case = golden("ab_3stages")
    s = case.leaves("in_s0", "in_s1", "in_s2")
    t = [case[f"in_t{i}"] for i in range(3)]
    case.check(0.003 * staged_boundary_loss(s, t), tolerance[torch.float64])


def test_against_a_loop():
    s, t = 2 * torch.randn(2, 3, 2, 2, 2, dtype=torch.float64)
    m = 0.7
    expected = 0.0
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        if b > 0 and a <= m:
            expected += (a - m) ** 2
        if b <= 0 and a > -m:
            expected += (a + m) ** 2
    assert boundary_loss(s, t, m).item() == pytest.approx(expected / 3, rel=1e-12)


def test_stages_weigh_half_as_much_each_step_away_from_the_last():
    s, t = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    one = boundary_loss(s, t).item()
    assert staged_boundary_loss([s, s, s], [t, t, t]).item() == pytest.approx(one * 1.75, rel=1e-12)


def test_gradient():
    s, t = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: boundary_loss(s, t), s.requires_grad_())


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "layer", "kernel", "stride"),
    [
        ((4, 16), (8, 8), nn.Conv2d, 3, 2),
        ((4, 8), (8, 16), nn.ConvTranspose2d, 4, 2),
        ((4, 8), (8, 8), nn.Conv2d, 1, 1),
    ],
)
def test_connector_layers(student, teacher, layer, kernel, stride, signature, data):
    method = AB()
    s = signature(channels=student[:1], sizes=student[1:])
    t = signature(channels=teacher[:1], sizes=teacher[1:])
    method.setup(s, t, data)
    convolution, norm = method.connectors[0]
    assert type(convolution) is layer
    assert convolution.kernel_size == (kernel, kernel)
    assert convolution.stride == (stride, stride)
    assert convolution.bias is not None
    assert isinstance(norm, nn.BatchNorm2d)
    # Weights, bias, and the norm's scale and shift.
    assert parameters(method.connectors[0]) == 4 * 8 * kernel**2 + 8 + 16
    connected = method.connectors[0](torch.randn(2, *s.taps["stage1/pre"].shape))
    assert connected.shape[1:] == t.taps["stage1/pre"].shape


def test_equal_maps_are_not_connected(signature, data):
    method = AB()
    method.setup(signature(), signature(), data)
    assert parameters(method) == 0


def test_the_boundary_stage(signature, data, output, make_batch):
    method = AB(boundary_epochs=7)
    net = signature()
    method.setup(net, net, data)
    [stage] = method.stages()
    assert (stage.name, stage.epochs, stage.lr, stage.uses_student) == ("boundary", 7, None, True)
    assert stage.trains == ("student.body", "connectors")
    assert stage.reads == {"stage*/pre"}
    s, t = output(net, stage.reads), output(net, stage.reads)
    [(value, weight)] = stage.loss(s, t, make_batch()).values()
    expected = sum(
        boundary_loss(a, b) * c for a, b, c in zip(s.pre_activations, t.pre_activations, (0.25, 0.5, 1), strict=True)
    )
    torch.testing.assert_close(value, expected)
    assert weight == 0.003


def test_the_main_stage_learns_from_the_labels_alone(make_batch):
    out = Output(torch.randn(6, 10))
    batch = make_batch()
    [(name, (value, weight))] = AB()(out, out, batch).items()
    assert (name, weight) == ("ce", 1.0)
    torch.testing.assert_close(value, nn.functional.cross_entropy(out.logits, batch.labels))


def test_a_teacher_at_rest_pushes_below_the_margin():
    s = torch.zeros(1, 1, 1, 2, requires_grad=True)
    boundary_loss(s, torch.tensor([[[[0.0, 0.5]]]])).backward()
    assert s.grad is not None
    np.testing.assert_array_equal(s.grad.flatten().numpy(), [2.0, -2.0])


def test_refuses_networks_without_pre_activation_taps(signature, data):
    student = signature("deit_micro", pre=False)
    with pytest.raises(Incompatible, match=r"^ab needs pre-activation taps; deit_micro has none$"):
        AB().setup(student, signature(), data)


def test_refuses_networks_of_different_depth(signature, data):
    teacher: Signature = signature("deep", channels=(4, 8, 16, 32), sizes=(8, 4, 2, 1))
    with pytest.raises(Incompatible, match=r"^ab pairs stages one to one; teacher deep has 4, student net has 3$"):
        AB().setup(signature(), teacher, data)


def test_refuses_sizes_that_no_connector_bridges(signature, data):
    message = r"^ab connects maps of equal, double or half size; the teacher's is 2x2, the student's 8x8$"
    with pytest.raises(Incompatible, match=message):
        AB().setup(signature(channels=(4,), sizes=(8,)), signature(channels=(4,), sizes=(2,)), data)
