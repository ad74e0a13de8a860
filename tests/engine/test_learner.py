from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.engine.outputs import outputs
from kdbench.errors import PluginError
from kdbench.method import Batch, Method, Output, Stage, Terms


class Labels(Method):
    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}


class Body(Labels):
    """A first stage that trains the body and one adapter."""

    reads = frozenset({"logits", "stage-1"})

    def setup(self, student, teacher, data):
        self.adapter = nn.Conv2d(64, 64, 1)
        self.bystander = nn.Linear(2, 2)
        self.seen: list[dict] = []

    def stages(self):
        return [Stage("first", self.first, 2, ("student.body", "adapter"), frozenset({"stage-1"}), lr=0.01)]

    def first(self, student, teacher, batch):
        self.seen.append(dict(student.taps))
        difference = self.adapter(student["stage3"]) - teacher["stage3"]
        return {"hint": (difference.square().mean(), 1.0)}

    def after_stage(self, name):
        self.adapter.requires_grad_(False)


def test_a_first_stage_trains_what_it_names_and_nothing_else(learner, train):
    """The head keeps its bits and its mode; the main stage then trains the student, but not what was frozen."""
    one = learner(Body(), epochs=1)
    before = {key: value.clone() for key, value in one.trainer.modules.state_dict().items()}
    one.trainer.begin_epoch()
    assert one.student.network.training
    assert not one.student.network.get_submodule(one.student.network.head[0]).training
    assert one.student.method.adapter.training
    assert not one.student.method.bystander.training
    train(one)
    after = one.trainer.modules.state_dict()
    assert [r.stage for r in one.progress.records] == ["first", "first", "main"]
    assert [r.epoch for r in one.progress.records] == [1, 2, 1]
    assert [r.lr for r in one.progress.records[:2]] == [0.01, 0.01]
    assert all(set(taps) == {"stage3"} for taps in one.student.method.seen)
    assert torch.equal(after["method.bystander.weight"], before["method.bystander.weight"])
    assert not torch.equal(after["method.adapter.weight"], before["method.adapter.weight"])


def test_a_first_stage_of_no_epochs_is_over_at_once(learner, train):
    class Empty(Body):
        def stages(self):
            return [Stage("first", self.first, 0, ("student.body", "adapter"), frozenset({"stage-1"}))]

    one = learner(Empty(), epochs=1)
    assert one.trainer.in_main
    assert not one.student.method.adapter.weight.requires_grad
    train(one)
    assert [r.stage for r in one.progress.records] == ["main"]


def test_in_a_body_stage_the_heads_keep_every_bit(learner, train):
    one = learner(Body(), epochs=1)
    head = one.student.network.get_submodule(one.student.network.head[0])
    before = {key: value.clone() for key, value in head.state_dict().items()}
    snapshots = []
    one.student.method.after_stage = lambda name: snapshots.append({k: v.clone() for k, v in head.state_dict().items()})
    train(one)
    assert len(snapshots) == 1
    assert all(torch.equal(snapshots[0][key], before[key]) for key in before)
    assert any(not torch.equal(head.state_dict()[key], before[key]) for key in before)


class Strange(Method):
    """Returns what its test wants."""

    def __init__(self, returned) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, student, teacher, batch):
        return self.returned(student)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda s: s.logits.mean(), "forward must return named terms, got Tensor"),
        (lambda s: {}, "forward must return named terms, got dict"),
        (lambda s: {"a": s.logits.mean()}, "term 'a' must be a pair (value, weight), got Tensor"),
        (lambda s: {"a": (s.logits, 1.0)}, "term 'a' must be a scalar, got shape (48, 10)"),
        (
            lambda s: {"a": (s["stage1"].mean(), 1.0)},
            "tap 'stage1' was not read: add it to reads, if the network has it; taps read: logits",
        ),
        (lambda s: {"a": ({}["no"], 1.0)}, "'no'"),
    ],
)
def test_wrong_terms_fail_the_trial_with_a_reason(learner, train, heard, returned, message):
    train(learner(Strange(returned)))
    assert heard.errors["a"].message == message
    assert heard.results == {}


def test_a_stage_that_trains_what_does_not_exist_is_refused(learner):
    class Wrong(Labels):
        def stages(self):
            return [Stage("first", self.forward, 1, ("nothing",), frozenset())]

    with pytest.raises(PluginError, match=r"^stage 'first' trains 'nothing', which is no submodule of the method$"):
        learner(Wrong())


def test_methods_see_float32_and_only_what_they_read():
    raw = {
        "logits": torch.ones(2, 3, dtype=torch.bfloat16),
        "a": torch.ones(2, dtype=torch.float16),
        "b": torch.ones(2),
    }
    seen = outputs(raw, ["a"])
    assert seen.logits.dtype == seen["a"].dtype == torch.float32
    assert set(seen.taps) == {"a"}


def test_one_sgd_step_is_the_recipes(learner, feed, teacher):
    """Weight decay is added to the gradient, momentum starts with it: w - lr * (grad + decay * w)."""
    one = learner(Labels(), lr=0.1, weight_decay=0.01)
    weight = one.student.network.get_submodule(one.student.network.classifier).weight
    before = weight.detach().clone()
    one.trainer.begin_epoch()
    minibatch = next(iter(feed.epoch("main", 0)))
    one.trainer.step(0, minibatch, teacher(minibatch.images, (), one.trainer.precision))
    expected = before - 0.1 * (weight.grad + 0.01 * before)
    torch.testing.assert_close(weight.detach(), expected)


def test_adapters_are_trained_counted_and_the_students_own_head_is_not_an_adapter(learner, train, heard):
    class Head(Labels):
        part_of_student = ("second",)
        reads = frozenset({"logits", "embedding"})

        def setup(self, student, teacher, data):
            self.second = nn.Linear(64, 10)
            self.adapter = nn.Linear(64, 7)
            self.served_a_first_stage = nn.Linear(3, 2)

        def forward(self, student, teacher, batch):
            embedding = student["embedding"]
            second = batch.cross_entropy(self.second(embedding))
            return {"second": (second, 1.0), "hint": (self.adapter(embedding).square().mean(), 1.0)}

    one = learner(Head())
    train(one)
    cost = heard.results["a"].cost
    own = sum(p.numel() for p in one.student.network.parameters())
    assert cost.student_parameters == own + 650
    assert cost.adapter_parameters == 455 + 8
    # The network's own head is left out of this loss.
    assert cost.trained_parameters == own - 650 + 650 + 455
    assert {k for k in one.student.weights() if k.startswith("method.")} == {
        "method.second.weight",
        "method.second.bias",
    }


def test_an_averaged_student_is_evaluated_and_saved(learner, train, heard):
    plain, averaged = learner(Labels(), "a"), learner(Labels(), "b", ema_decay=0.5)
    train(plain, averaged)
    assert averaged.student.average is not None
    assert all(
        torch.equal(p, q)
        for p, q in zip(plain.student.network.parameters(), averaged.student.network.parameters(), strict=True)
    )
    saved = averaged.student.weights()
    assert any(not torch.equal(saved[key], value) for key, value in averaged.student.network.state_dict().items())
    assert heard.results["a"].metrics["nll"] != heard.results["b"].metrics["nll"]
