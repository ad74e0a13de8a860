from __future__ import annotations

import math
import re

import pytest
import torch
from kdbench_methods.kd import soft_target_loss
from kdbench_methods.probes import Probe, Probes, matched_layers, probe_loss

from kdbench.method import Incompatible, Signature


def test_golden_layers(golden):
    cases = golden("easytransfer_probe_layers")
    assert len(cases) == 4
    for name, expected in cases.items():
        n_s, n_t = map(int, re.findall(r"\d+", name))
        assert matched_layers(n_s, n_t) == expected.tolist()


def test_layers_are_matched_in_proportion():
    for n_s in range(1, 9):
        for n_t in range(1, 20):
            assert matched_layers(n_s, n_t) == [math.ceil(i * n_t / n_s) for i in range(n_s)]


def test_a_probe_is_linear_in_the_pooled_map():
    probe = Probe(3, 5)
    f = torch.randn(2, 3, 4, 4)
    expected = f.numpy().mean((2, 3)) @ probe.linear.weight.detach().numpy().T + probe.linear.bias.detach().numpy()
    torch.testing.assert_close(probe(f), torch.from_numpy(expected))


def test_squares_are_averaged_over_the_batch():
    s, t = torch.randn(2, 6, 5, dtype=torch.float64)
    assert probe_loss(s, t, "mse", 1.0).item() == pytest.approx(((s - t) ** 2).sum().item() / 12)


@pytest.mark.parametrize("loss", ["mse", "xent", "kld"])
def test_gradient(loss):
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: probe_loss(s, t, loss, 2.0), s.requires_grad_())


def test_the_teachers_probes_are_trained_first_and_then_frozen(signature, data, output, make_batch):
    method = Probes()
    method.setup(signature(), signature(), data)
    [stage] = method.stages()
    assert (stage.name, stage.epochs, stage.uses_student) == ("probes", 5, False)
    assert stage.trains == ("teacher_probes",)
    t = output(signature(), stage.reads)
    batch = make_batch()
    [(value, weight)] = stage.loss(None, t, batch).values()
    assert weight == 1.0
    expected = sum(batch.cross_entropy(probe(f)) for probe, f in zip(method.teacher_probes, t.stages, strict=True))
    torch.testing.assert_close(value, expected)
    method.after_stage("probes")
    assert not any(p.requires_grad for p in method.teacher_probes.parameters())
    assert all(p.requires_grad for p in method.student_probes.parameters())


def test_stages_are_matched_across_depths(signature, data, output, make_batch):
    student = signature("student", channels=(4, 8), sizes=(8, 4))
    teacher = signature("teacher", channels=(4, 8, 16, 32), sizes=(8, 4, 2, 1))
    method = Probes(probe_loss="kld")
    method.setup(student, teacher, data)
    s, t = output(student, Probes.reads), output(teacher, Probes.reads)
    terms = method(s, t, make_batch())
    expected = probe_loss(
        method.student_probes[0](s["stage1"]), method.teacher_probes[0](t["stage1"]), "kld", 2.0
    ) + probe_loss(method.student_probes[1](s["stage2"]), method.teacher_probes[2](t["stage3"]), "kld", 2.0)
    torch.testing.assert_close(terms["probes"][0], expected)
    torch.testing.assert_close(terms["kd"][0], soft_target_loss(s.logits, t.logits, 4.0))


def test_a_deeper_student_is_matched_to_the_teachers_logits_too(signature, data, output, make_batch):
    student = signature("student", channels=(4, 8, 16, 32), sizes=(8, 4, 2, 1))
    teacher = signature("teacher")
    method = Probes()
    method.setup(student, teacher, data)
    s, t = output(student, Probes.reads), output(teacher, Probes.reads)
    theirs = [p(f) for p, f in zip(method.teacher_probes, t.stages, strict=True)] + [t.logits]
    ours = [p(f) for p, f in zip(method.student_probes, s.stages, strict=True)]
    expected = [probe_loss(ours[i], theirs[j], "mse", 2.0) for i, j in enumerate([0, 1, 2, 3])]
    torch.testing.assert_close(method(s, t, make_batch())["probes"][0], torch.stack(expected).sum())


def test_refuses_a_network_without_maps(signature, data):
    with pytest.raises(Incompatible, match=r"^probes needs stage maps; flat has none$"):
        Probes().setup(signature(), Signature("flat", "mlp", 10, {}), data)
