from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.deit import DeiT, hard_distillation, probability_distillation, soft_distillation
from scipy.special import log_softmax, softmax

from kdbench.method import Incompatible, Output, Signature


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("deit_hard", {}),
        ("deit_soft_tau1_numel", {"distillation": "soft"}),
        ("deit_soft_tau3_numel", {"distillation": "soft", "tau": 3.0}),
        ("deit_soft_tau1_batchmean", {"distillation": "soft", "reduction": "batchmean"}),
        ("deit_soft_tau3_batchmean", {"distillation": "soft", "tau": 3.0, "reduction": "batchmean"}),
    ],
)
def test_golden(name, settings, golden, tolerance, make_batch, total):
    case = golden(name)
    cls, dist = case.leaves("in_cls", "in_dist")
    student = Output(cls, {"dist_logits": dist})
    terms = DeiT(**settings)(student, Output(case["in_teacher"]), make_batch(labels=case["in_target"]))
    case.check(total(terms), tolerance[torch.float64])


def test_against_scipy():
    d, t = torch.randn(2, 5, 4, dtype=torch.float64)
    log_p, q = log_softmax(d.numpy() / 3, axis=1), softmax(t.numpy() / 3, axis=1)
    divergence = 9 * np.sum(q * (np.log(q) - log_p))
    assert soft_distillation(d, t, 3.0).item() == pytest.approx(divergence / 20, rel=1e-9)
    assert soft_distillation(d, t, 3.0, "batchmean").item() == pytest.approx(divergence / 5, rel=1e-9)
    log_p = log_softmax(d.numpy(), axis=1)
    decisions = log_p[np.arange(5), t.numpy().argmax(1)]
    assert hard_distillation(d, t).item() == pytest.approx(-decisions.mean(), rel=1e-9)
    target = 0.8 * softmax(t.numpy(), axis=1) + 0.2 / 4
    expected = -np.sum(target * log_p, axis=1).mean()
    assert probability_distillation(d, t, 0.2).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [soft_distillation, hard_distillation, probability_distillation])
def test_gradient(loss):
    d, t = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda d: loss(d, t), d.requires_grad_())


def test_a_student_with_a_second_head_uses_it(signature, data):
    method = DeiT()
    method.setup(signature(dist_head=True), signature(), data)
    assert method.student_reads == {"logits", "dist_logits"}
    assert method.part_of_student == ()
    assert list(method.parameters()) == []
    cls, dist = torch.randn(2, 3, 10)
    torch.testing.assert_close(method.predict(Output(cls, {"dist_logits": dist})), (cls + dist) / 2)


def test_any_other_student_is_given_one(signature, data):
    method = DeiT()
    method.setup(signature(), signature(), data)
    assert method.student_reads == {"logits", "embedding"}
    assert method.part_of_student == ("dist_head",)
    assert sum(p.numel() for p in method.parameters()) == 16 * 10 + 10
    out = Output(torch.randn(3, 10), {"embedding": torch.randn(3, 16)})
    expected = (out.logits + method.get_submodule("dist_head")(out.embedding)) / 2
    torch.testing.assert_close(method.predict(out), expected)


def test_without_distillation_the_class_head_alone_learns_and_predicts(signature, data, make_batch):
    method = DeiT(distillation="none")
    method.setup(signature(dist_head=True), signature(), data)
    assert not method.needs_teacher
    assert method.student_reads == {"logits"}
    out = Output(torch.randn(6, 10))
    [(name, (_, weight))] = method(out, None, make_batch()).items()
    assert (name, weight) == ("ce", 1.0)
    assert method.predict(out) is out.logits


def test_refuses_a_student_without_an_embedding(signature, data):
    message = r"^deit needs a distillation head or an embedding; flat has none$"
    with pytest.raises(Incompatible, match=message):
        DeiT().setup(Signature("flat", "mlp", 10, {}), signature(), data)
