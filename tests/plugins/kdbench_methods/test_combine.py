from __future__ import annotations

import pytest
import torch
from kdbench_methods.combine import Combine
from kdbench_methods.kd import KD
from kdbench_methods.pkt import PKT
from kdbench_methods.rkd import RKD

from kdbench.method import Incompatible, Output, members_made_by


def combine(*members):
    return Combine(methods=[{"name": m} if isinstance(m, str) else m for m in members])


def test_adds_the_members_terms_and_the_labels_once(signature, data, output, make_batch):
    method = combine("rkd", {"name": "kd", "ce_weight": 0, "kd_weight": 2, "temperature": 3}, "pkt")
    net = signature()
    method.setup(net, net, data)
    s, t, batch = output(net, method.reads), output(net, method.reads), make_batch()
    terms = method(s, t, batch)
    alone = {
        "ce": RKD()(s, t, batch)["ce"],
        **{f"rkd.{name}": term for name, term in RKD()(s, t, batch).items() if name != "ce"},
        "kd.kd": KD(temperature=3.0, kd_weight=2.0)(s, t, batch)["kd"],
        "pkt.pkt": PKT()(s, t, batch)["pkt"],
    }
    assert list(terms) == list(alone)
    for name, (value, weight) in alone.items():
        assert weight == terms[name][1]
        torch.testing.assert_close(terms[name][0], value)


def test_the_label_term_has_the_largest_weight_of_any_member_whatever_their_order(make_batch):
    out = Output(torch.randn(6, 10))
    weights = {"crd": {"name": "dist"}, "kd": {"name": "kd", "ce_weight": 0.0}}
    for members in (weights.values(), reversed(weights.values())):
        method = combine(*members)
        method.student_taps = method.teacher_taps = {"dist": [], "kd": []}
        assert method(out, out, make_batch())["ce"][1] == 1.0


def test_a_label_term_by_another_name_is_counted_once_too(signature, data, make_batch):
    method = combine("kd", "kd/akida")
    method.setup(signature(), signature(), data)
    out = Output(torch.randn(6, 10))
    assert list(method(out, out, make_batch())) == ["ce", "kd.kd", "kd/akida.distillation_loss"]


def test_reads_what_the_members_read(signature, data):
    method = combine("pkt", "ab", "sp")
    assert method.reads == {"logits", "embedding", "stage-1"}
    method = combine("kd", "deit")
    method.setup(signature(), signature(), data)
    assert method.student_reads == {"logits", "embedding"}
    assert method.teacher_reads == {"logits"}


def test_members_see_no_more_than_they_read(signature, data, output, make_batch):
    """``ft`` takes the one stage map it reads, beside a member that reads all of them."""
    method = combine("vid", "ft")
    net = signature()
    method.setup(net, net, data)
    out = output(net, method.reads)
    assert len(out.stages) == 3
    assert "ft.ft" in method(out, out, make_batch())


def test_stages_are_concatenated(signature, data):
    method = combine("ft", "ab/paper", "probes", "ab")
    method.setup(signature(), signature(channels=(6, 8, 12)), data)
    stages = method.stages()
    assert [stage.name for stage in stages] == ["ft-paraphraser", "ab-paper-boundary", "probes-probes", "ab-boundary"]
    assert [stage.trains for stage in stages] == [
        ("members.ft.paraphraser",),
        ("student.body", "members.ab/paper.connectors"),
        ("members.probes.teacher_probes",),
        ("student.body", "members.ab.connectors"),
    ]
    for stage in stages:
        for part in stage.trains:
            if not part.startswith("student"):
                assert list(method.get_submodule(part).parameters())
    method.after_stage("ft-paraphraser")
    assert not any("decoder" in name for name in method.state_dict())
    assert all(p.requires_grad for p in method.get_submodule("members.probes.teacher_probes").parameters())


def test_memories_are_updated(signature, data, output, make_batch):
    method = combine("kd", "crd")
    net = signature()
    method.setup(net, net, data)
    memory = method.get_buffer("members.crd.memory_student")
    before = memory.clone()
    out = output(net, method.reads)
    method(out, out, make_batch())
    with torch.no_grad():
        method.after_step(out, out, make_batch())
    assert not torch.equal(memory[:6], before[:6])
    assert "state" in method.expected_failures


def test_predicts_as_its_one_member_that_does_so(signature, data, output):
    method = combine("kd", "deit")
    net = signature()
    method.setup(net, net, data)
    assert method.part_of_student == ("members.deit.dist_head",)
    out = output(net, method.student_reads)
    expected = (out.logits + method.get_submodule("members.deit.dist_head")(out.embedding)) / 2
    torch.testing.assert_close(method.predict(out), expected)
    plain = combine("kd")
    plain.setup(net, net, data)
    assert plain.predict(out) is out.logits


def test_crd_and_kd_under_its_own_name(build, signature, data, output, make_batch):
    net = signature()
    method = build("crd+kd", net, net, data)
    out = output(net, method.reads)
    weights = {name: weight for name, (_, weight) in method(out, out, make_batch()).items()}
    assert weights == {"ce": 1.0, "crd.crd": 0.8, "kd.kd": 1.0}


def test_the_same_method_twice(signature, data, make_batch):
    method = combine({"name": "kd", "temperature": 1.0}, "kd")
    method.setup(signature(), signature(), data)
    out = Output(torch.randn(6, 10))
    assert list(method(out, out, make_batch())) == ["ce", "kd.kd", "kd#2.kd"]


def test_a_harness_may_make_members_itself():
    with members_made_by(lambda name, settings: KD(**settings)):
        method = combine({"name": "somebodys", "temperature": 2.0})
    assert method.get_submodule("members.somebodys").temperature == 2.0


def test_one_member_may_predict_by_itself(signature, data):
    method = combine("deit", "deit/soft")
    message = r"^combine accepts only one method with its own predict, got deit and deit/soft$"
    with pytest.raises(Incompatible, match=message):
        method.setup(signature(), signature(), data)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], r"^methods: must name at least one method$"),
        ([{"temperature": 1.0}], r"^methods\[0\]\.name: is required$"),
        (["kd", "kdd"], r"^methods\[1\]\.name: 'kdd' is not a method of kdbench; known: ab, ab/paper, at, "),
        ([{"name": "kd", "t": 1}], r"^methods\[0\]\.t: kd has no such setting; known: ce_weight, kd_weight, temp"),
        ([{"name": "none", "t": 1}], r"^methods\[0\]\.t: none has no such setting; known: none$"),
        ([{"name": "kd", "temperature": 0}], r"^methods\[0\]\.temperature: input should be greater than 0, got 0$"),
    ],
)
def test_bad_members(members, message):
    with pytest.raises(ValueError, match=message):
        combine(*members)
