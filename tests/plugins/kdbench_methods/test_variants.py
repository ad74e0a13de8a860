"""What the named variants stand for, each built by its name."""

from __future__ import annotations

import pytest
import torch
from kdbench_methods.kd import soft_target_loss

from kdbench.method import Output


@pytest.fixture
def two_heads(signature):
    return signature(dist_head=True)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("kd", "kd_total_T4_ce0.1_kl0.9"),
        ("kd/keras", "keras_distiller_alpha.1_T3"),
        ("kd/akida", "keras_distiller_alpha.1_T3"),
        ("kd/easytransfer-xent", "easytransfer_xent"),
        ("kd/easytransfer-kld", "easytransfer_kld_as_meant"),
    ],
)
def test_golden_logits(name, case, build, golden, signature, data, tolerance, make_batch, total):
    case = golden(case)
    [s] = case.leaves("in_student")
    method = build(name, signature(), signature(), data)
    case.check(
        total(method(Output(s), Output(case["in_teacher"]), make_batch(labels=case["in_target"]))),
        tolerance[torch.float64],
    )


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("deit", "deit_hard"),
        ("deit/hard", "deit_hard"),
        ("deit/soft", "deit_soft_tau1_numel"),
        ("deit/akida-soft", "deit_akida_soft"),
        ("deit/akida-hard", "deit_akida_hard"),
    ],
)
def test_golden_heads(name, case, build, golden, two_heads, data, tolerance, make_batch, total):
    case = golden(case)
    cls, dist = case.leaves("in_cls", "in_dist")
    method = build(name, two_heads, two_heads, data)
    student = Output(cls, {"dist_logits": dist})
    case.check(
        total(method(student, Output(case["in_teacher"]), make_batch(labels=case["in_target"]))),
        tolerance[torch.float64],
    )
    torch.testing.assert_close(method.predict(student), (cls + dist) / 2)


@pytest.mark.parametrize(
    ("name", "case", "weight"), [("rkd/distance", "rkd_distance_only", 25.0), ("rkd/angle", "rkd_angle_only", 50.0)]
)
def test_golden_relations(name, case, weight, build, golden, signature, data, tolerance, make_batch):
    case = golden(case)
    [s] = case.leaves("in_student")
    logits = torch.zeros(8, 10, dtype=torch.float64)
    student = Output(logits, {"embedding": s})
    terms = build(name, signature(), signature(), data)(
        student, Output(logits, {"embedding": case["in_teacher"]}), make_batch(8)
    )
    term = name.partition("/")[2]
    assert list(terms) == ["ce", term]
    assert terms[term][1] == weight
    case.check(terms[term][0], tolerance[torch.float64])


def test_deit_none_is_the_class_head_alone(build, two_heads, data, make_batch):
    method = build("deit/none", two_heads, two_heads, data)
    out = Output(torch.randn(6, 10))
    assert list(method(out, out, make_batch())) == ["ce"]
    assert method.predict(out) is out.logits
    assert not method.needs_teacher


def test_ab_paper_ends_with_soft_targets_alone(build, signature, data, make_batch):
    method = build("ab/paper", signature(), signature(), data)
    s, t = torch.randn(2, 6, 10)
    [(name, (value, weight))] = method(Output(s), Output(t), make_batch()).items()
    assert name == "kd"
    torch.testing.assert_close(value * weight, soft_target_loss(s, t, 3.0) / 9)


def test_ft_paper_has_no_normalisation_and_reconstructs_in_l1(build, signature, data, output, make_batch):
    net = signature()
    method = build("ft/paper", net, net, data)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in method.modules())
    [stage] = method.stages()
    t = output(net, stage.reads)
    value, _ = stage.loss(None, t, make_batch())["reconstruction"]
    torch.testing.assert_close(value, (method.paraphraser(t["stage3"]) - t["stage3"]).abs().mean())
    s = output(net, stage.reads)
    value, weight = method(s, t, make_batch())["ft"]
    factors = (method.translator(s["stage3"]), method.paraphraser.encoder(t["stage3"]))
    unit = [torch.nn.functional.normalize(f.flatten(1)) for f in factors]
    torch.testing.assert_close(value, (unit[0] - unit[1]).abs().mean())
    assert weight == 500.0
