"""Company changes nothing, nor does being stopped: compared bit by bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdbench.engine.cohort import Interrupted, Lockstep
from kdbench.errors import KdbenchError
from kdbench.method import Batch, Method, Output, Stage, Terms
from kdbench.status import Status


class Labels(Method):
    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}


class Hints(Labels):
    """With an adapter, a first stage of its own, and chance of its own."""

    reads = frozenset({"logits", "stage-1"})

    def setup(self, student, teacher, data):
        self.adapter = nn.Conv2d(64, 64, 1)

    def stages(self):
        return [Stage("hints", self.first, 2, ("student.body", "adapter"), frozenset({"stage-1"}))]

    def first(self, student, teacher, batch):
        return {"hint": ((self.adapter(student["stage3"]) - teacher["stage3"]).square().mean(), 1.0)}

    def forward(self, student, teacher, batch):
        noise = torch.randn(student["stage3"].shape, generator=batch.generator)
        hint = (self.adapter(student["stage3"]) - teacher["stage3"] + 0.1 * noise).square().mean()
        return {**super().forward(student, teacher, batch), "hint": (hint, 0.5 + batch.progress)}


class Careless(Labels):
    """Draws from the global generator, as a careless plugin does."""

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits + 0.1 * torch.randn_like(student.logits)), 1.0)}


class Encoder(Labels):
    """A stage that needs no student, as FT's paraphraser."""

    reads = frozenset({"logits", "stage-1"})
    trained = 0

    def setup(self, student, teacher, data):
        self.encoder = nn.Conv2d(64, 8, 1)

    def stages(self):
        return [Stage("encode", self.first, 2, ("encoder",), frozenset({"stage-1"}), uses_student=False)]

    def first(self, student, teacher, batch):
        assert student is None
        type(self).trained += 1
        return {"size": ((self.encoder(teacher["stage3"]) - 1).square().mean(), 1.0)}


def weights(tmp_path, name):
    return load_file(tmp_path / name / "student.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("method", [Labels, Hints, Careless])
def test_alone_and_in_company_a_student_ends_with_the_same_bits(learner, train, tmp_path, method):
    train(learner(method(), "a", "alone"))
    others = [learner(Hints(), "b"), learner(Labels(), "c"), learner(Careless(), "d", lr=0.01)]
    train(*others, learner(method(), "a", "company"))
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "company"))


def test_different_methods_end_with_different_bits(learner, train, tmp_path):
    train(learner(Labels(), "a"), learner(Hints(), "b"))
    assert not equal(weights(tmp_path, "a"), weights(tmp_path, "b"))


@pytest.mark.usefixtures("threads")
def test_stopped_after_any_epoch_and_resumed_it_ends_with_the_same_bits(learner, train, tmp_path):
    """Two epochs of the first stage, three of the main one."""
    train(learner(Hints(), "a", "whole", epochs=3))
    for epochs_before in (1, 2, 3, 4):
        folder = f"after-{epochs_before}"
        stops = iter([False] * (epochs_before - 1) + [True])
        with pytest.raises(Interrupted):
            train(learner(Hints(), "a", folder, epochs=3), stop=stops.__next__)
        again = learner(Hints(), "a", folder, epochs=3)
        assert again.resume()
        assert len(again.progress.records) == epochs_before
        train(again)
        assert equal(weights(tmp_path, "whole"), weights(tmp_path, folder)), epochs_before
        assert [(r.stage, r.epoch) for r in again.progress.records] == [
            ("hints", 1), ("hints", 2), ("main", 1), ("main", 2), ("main", 3)
        ]  # fmt: skip


def test_one_that_a_checkpoint_puts_ahead_waits_for_the_others(learner, train, heard):
    count = iter(range(1, 99))
    with pytest.raises(Interrupted):
        train(learner(Labels(), "a", epochs=3), stop=lambda: next(count) >= 2)
    ahead = learner(Labels(), "a", epochs=3)
    ahead.resume()
    heard.epochs.clear()
    train(ahead, learner(Labels(), "b", epochs=3))
    assert [(name, epoch) for name, _, epoch in heard.epochs] == [("b", 1), ("b", 2), ("a", 3), ("b", 3)]


def test_a_stage_without_student_is_trained_once_for_equals(learner, train, tmp_path, feed, heard):
    Encoder.trained = 0
    train(learner(Encoder(), "a"), learner(Encoder(), "b", lr=0.05))
    assert Encoder.trained == 2 * feed.steps_per_epoch
    assert [name for name, stage, _ in heard.epochs if stage == "encode"] == ["a", "b", "a", "b"]
    train(learner(Encoder(), "a", "alone"))
    assert equal(weights(tmp_path, "a"), weights(tmp_path, "alone"))
    Encoder.trained = 0
    # Another learning rate makes another encoder.
    train(learner(Encoder(), "c"), learner(Encoder(), "d", lr=0.01))
    assert Encoder.trained == 4 * feed.steps_per_epoch


def test_one_that_fails_leaves_and_the_others_keep_their_bits(learner, train, tmp_path, heard):
    class Fails(Labels):
        steps = 0

        def forward(self, student, teacher, batch):
            self.steps += 1
            if self.steps == 6:
                raise ZeroDivisionError("by a plugin")
            return super().forward(student, teacher, batch)

    train(learner(Labels(), "a", "alone"))
    failing = learner(Fails(), "f")
    train(failing, learner(Labels(), "a"))
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "a"))
    error = heard.errors["f"]
    assert (error.type, error.message, error.stage, error.epoch) == (
        "ZeroDivisionError", "by a plugin", "main", 2
    )  # fmt: skip
    assert failing.folder.result is None
    assert failing.folder.error == error


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_a_finished_outcome(learner, train, tmp_path, heard, bad):
    class Diverges(Labels):
        def forward(self, student, teacher, batch):
            value = batch.cross_entropy(student.logits)
            return {"ce": (value + torch.where(batch.epoch >= 1, bad, 0.0), 1.0)}

    train(learner(Labels(), "a", "alone", epochs=3))
    train(learner(Diverges(), "x", epochs=3), learner(Labels(), "a", epochs=3))
    result = heard.results["x"]
    assert (result.status, result.epoch) == (Status.DIVERGED, 2)
    assert result.metrics == {}
    assert result.best_on_test.epoch == 1
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "a"))


def test_the_headline_is_the_last_epoch_or_the_best_on_validation_never_on_test(learner, train, heard):
    """A huge rate makes accuracy jump about, so that last, best on validation and best on test differ."""
    last, chosen = (
        learner(Labels(), "last", epochs=6, lr=2.0),
        learner(Labels(), "chosen", epochs=6, lr=2.0, selection="validation"),
    )
    train(last, chosen)
    result = heard.results["last"]
    assert result.epoch == 6
    assert result.top1 == last.progress.records[-1].top1
    assert result.best_on_test.top1 == max(r.top1 for r in last.progress.records)
    result = heard.results["chosen"]
    best = max(chosen.progress.records, key=lambda r: r.validation_top1)
    assert (result.epoch, result.top1) == (best.epoch, best.top1)


def test_weights_chosen_on_validation_are_those_that_are_saved(learner, train, tmp_path, feed, heard):
    chosen = learner(Labels(), "a", epochs=6, lr=2.0, selection="validation")
    train(chosen)
    chosen.student.network.load_state_dict(weights(tmp_path, "a"))
    chosen.student.network.eval()
    with chosen.student.evaluated():
        right = sum((chosen.predict(x).argmax(1) == y).sum().item() for x, y in feed.evaluate("test"))
    assert right == pytest.approx(heard.results["a"].top1)  # of 100 images


def test_mixed_labels_reach_the_loss(learner, feed, teacher):
    one = learner(Labels())
    one.trainer.begin_epoch()
    minibatch = next(iter(feed.epoch("main", 0)))
    mixed = replace(minibatch, mixed_labels=minibatch.labels.roll(1), mix=torch.tensor(0.25))
    one.trainer.step(0, mixed, teacher(mixed.images, (), one.trainer.precision))
    reference = learner(Labels(), "b")
    reference.trainer.modules.train()
    logits = reference.student.network(mixed.images)["logits"]
    soft = 0.25 * nn.functional.one_hot(mixed.labels, 10) + 0.75 * nn.functional.one_hot(mixed.labels.roll(1), 10)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert one.end_epoch(0.0, 0.0).train_loss == pytest.approx(expected.item(), rel=1e-6)


class Writes(Labels):
    """Writes into what all students share."""

    def forward(self, student, teacher, batch):
        teacher.logits.zero_()
        batch.labels.fill_(3)
        return super().forward(student, teacher, batch)


def test_one_that_writes_into_what_all_share_leaves_and_the_others_keep_their_bits(learner, train, tmp_path, heard):
    class Distils(Labels):
        def forward(self, student, teacher, batch):
            return {"mse": ((student.logits - teacher.logits).square().mean(), 1.0)}

    train(learner(Distils(), "a", "alone"))
    train(learner(Writes(), "w", foreign=()), learner(Distils(), "a", "company"))
    assert heard.errors["w"].message.startswith("it wrote into the teacher's outputs or the batch")
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "company"))


class Mixed:
    """A feed whose batches are mixed with themselves."""

    def __init__(self, feed):
        self.feed = feed

    def __getattr__(self, name):
        return getattr(self.feed, name)

    def epoch(self, stage, epoch):
        for batch in self.feed.epoch(stage, epoch):
            yield replace(batch, mixed_labels=batch.labels.roll(1), mix=torch.tensor(0.25))


@pytest.mark.parametrize("what", ["mixed_labels", "mix"])
def test_the_mixture_is_shared_too(learner, feed, teacher, tmp_path, heard, made_with, what):
    class WritesMixture(Labels):
        def forward(self, student, teacher, batch):
            getattr(batch, what).fill_(1)
            return super().forward(student, teacher, batch)

    options = {"checkpoint_every": 1, **made_with}
    Lockstep([learner(Labels(), "a", "alone")], Mixed(feed), teacher, heard, **options).run()
    writes = learner(WritesMixture(), "w", foreign=())
    Lockstep([writes, learner(Labels(), "a", "b")], Mixed(feed), teacher, heard, **options).run()
    assert heard.errors["w"].message.startswith("it wrote into the teacher's outputs or the batch")
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "b"))


class Asserts(Labels):
    def forward(self, student, teacher, batch):
        raise torch.AcceleratorError("device-side assert triggered")


def test_a_device_that_works_was_not_stopped_by_who_says_so(learner, train, heard):
    train(learner(Asserts(), "x"), learner(Labels(), "a"))
    assert heard.errors["x"].type == "AcceleratorError"
    assert heard.results["a"].status == "done"


def test_a_device_that_stops_working_ends_the_run_and_is_said(learner, train, heard, monkeypatch):
    # No CPU can be made to fail like this.
    monkeypatch.setattr("kdbench.engine.guard.responds", lambda device: False)
    with pytest.raises(KdbenchError, match="cpu stopped working while x was trained: device-side assert"):
        train(learner(Asserts(), "x"), learner(Labels(), "a"))
    assert heard.errors["x"].type == "AcceleratorError"
    assert heard.results == {}


def test_a_stage_is_not_shared_across_smoothing(learner, train, feed):
    class Smoothed(Encoder):
        def first(self, student, teacher, batch):
            value = batch.cross_entropy(self.encoder(teacher["stage3"]).mean((2, 3)).repeat(1, 2)[:, :10])
            type(self).trained += 1
            return {"ce": (value, 1.0)}

    Smoothed.trained = 0
    train(learner(Smoothed(), "a"), learner(Smoothed(), "b", label_smoothing=0.3))
    assert Smoothed.trained == 4 * feed.steps_per_epoch


def test_sharers_of_a_stage_share_its_cost(learner, train, heard):
    a, b = learner(Encoder(), "a"), learner(Encoder(), "b", lr=0.05)
    train(a, b)
    first = [[r.seconds for r in x.progress.records if r.stage == "encode"] for x in (a, b)]
    assert first[0] == first[1]
    assert min(first[0]) > 0


def test_a_checkpoint_under_another_teacher_or_data_is_not_gone_on_with(learner, train):
    one = learner(Labels(), "a", epochs=3)
    one.made_with = {"teacher": "x", "data": "y"}
    with pytest.raises(Interrupted):
        train(one, stop=lambda: True)
    again = learner(Labels(), "a", epochs=3)
    again.made_with = {"teacher": "z", "data": "y"}
    assert not again.resume()
    again.made_with = {"teacher": "x", "data": "y"}
    assert again.resume()


def test_what_a_method_froze_stays_frozen_through_later_stages(learner, train):
    class Two(Hints):
        def setup(self, student, teacher, data):
            super().setup(student, teacher, data)
            self.second = nn.Conv2d(64, 64, 1)

        def stages(self):
            reads = frozenset({"stage-1"})
            return [
                Stage("one", self.first, 1, ("student.body", "adapter"), reads),
                Stage("two", self.other, 1, ("second",), reads),
            ]

        def other(self, student, teacher, batch):
            return {"hint": ((self.second(student["stage3"]) - teacher["stage3"]).square().mean(), 1.0)}

        def after_stage(self, name):
            (self.adapter if name == "one" else self.second).requires_grad_(False)

    one = learner(Two(), epochs=1)
    snapshots = []
    original = one.student.method.after_stage
    one.student.method.after_stage = lambda name: (
        original(name),
        snapshots.append(one.student.method.adapter.weight.clone()),
    )
    train(one)
    assert not one.student.method.adapter.weight.requires_grad
    assert not one.student.method.second.weight.requires_grad
    assert torch.equal(snapshots[0], snapshots[1])
    assert torch.equal(snapshots[1], one.student.method.adapter.weight)


@pytest.mark.parametrize("recipe", [{"ema_decay": 0.9}, {"selection": "validation", "lr": 1.0}])
def test_averages_and_selection_resume_to_the_same_bits(learner, train, tmp_path, heard, recipe):
    train(learner(Hints(), "a", "whole", epochs=4, **recipe))
    whole = heard.results["a"].top1
    count = iter(range(1, 99))
    with pytest.raises(Interrupted):
        train(learner(Hints(), "a", "halved", epochs=4, **recipe), stop=lambda: next(count) >= 4)
    again = learner(Hints(), "a", "halved", epochs=4, **recipe)
    assert again.resume()
    train(again)
    assert equal(weights(tmp_path, "whole"), weights(tmp_path, "halved"))
    assert heard.results["a"].top1 == whole


def test_a_plugin_that_exits_is_a_failed_trial_and_a_changed_set_of_terms_too(learner, train, heard):
    class Exits(Labels):
        def forward(self, student, teacher, batch):
            raise SystemExit(0)

    class Renames(Labels):
        steps = 0

        def forward(self, student, teacher, batch):
            self.steps += 1
            return {f"ce{self.steps}": (batch.cross_entropy(student.logits), 1.0)}

    train(learner(Exits(), "x"), learner(Renames(), "r"), learner(Labels(), "a"))
    assert heard.errors["x"].type == "SystemExit"
    assert heard.errors["r"].message == "terms changed within an epoch from ['ce1'] to ['ce2']"
    assert heard.results["a"].status == "done"


def test_one_that_cannot_predict_fails_alone(learner, train, heard):
    class Speechless(Labels):
        def predict(self, student):
            raise ValueError("no words")

    train(learner(Speechless(), "s"), learner(Labels(), "a"))
    assert heard.errors["s"].message == "no words"
    assert heard.results["a"].status == "done"


def test_without_need_of_a_teacher_none_is_run_or_charged(learner, feed, heard, teacher, made_with, monkeypatch):
    class Alone(Labels):
        needs_teacher = False

    monkeypatch.setattr(type(teacher), "__call__", lambda *_: pytest.fail("the teacher was run"), raising=True)
    one = learner(Alone(), "a", epochs=1)
    lockstep = Lockstep(
        [one],
        feed,
        teacher,
        heard,
        **made_with,
        checkpoint_every=1,
    )
    lockstep.lessons._on_test = torch.zeros(100, 10)  # agreement is measured with it all the same
    lockstep.run()
    assert heard.results["a"].cost.teacher_seconds == 0


def test_evaluations_every_few_epochs_and_after_the_last(learner, train, heard, tmp_path):
    train(learner(Labels(), "a", "each", epochs=5))
    metrics = heard.results["a"].metrics
    one = learner(Labels(), "a", "some", epochs=5, evaluate_every=2)
    train(one)
    assert [record.top1 is not None for record in one.progress.records] == [False, True, False, True, True]
    assert heard.results["a"].metrics == metrics
    assert equal(weights(tmp_path, "each"), weights(tmp_path, "some"))
