"""What a method or network of a third party does to others in its cohort: nothing, or it fails by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdbench.engine.cohort import Lockstep
from kdbench.method import Batch, Method, Output, Terms


class Labels(Method):
    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}


class Careless(Labels):
    """Draws from the global generator, as a careless plugin does."""

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits + 0.1 * torch.randn_like(student.logits)), 1.0)}


def weights(tmp_path, name):
    return load_file(tmp_path / name / "student.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_tensor_that_two_learners_train_costs_both_and_no_other(learner, train, heard, tmp_path):
    shared = nn.Linear(10, 10)

    class Shares(Labels):
        def setup(self, student, teacher, data):
            self.adapter = shared

        def forward(self, student, teacher, batch):
            return {"ce": (batch.cross_entropy(self.adapter(student.logits)), 1.0)}

    train(learner(Labels(), "a", "alone"))
    train(learner(Shares(), "x"), learner(Shares(), "y"), learner(Labels(), "a"))
    assert heard.errors["x"].message == (
        "its 'method.adapter.weight' is the very tensor that y trains; make one for each instance"
    )
    assert set(heard.errors) == {"x", "y"}
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "a"))


def test_who_replaces_a_function_within_an_epoch_is_found_by_a_watchful_cohort(
    learner, feed, teacher, heard, tmp_path, made_with
):
    original = nn.functional.cross_entropy

    class Replaces(Labels):
        calls = 0

        def forward(self, student, teacher, batch):
            self.calls += 1
            if self.calls == 2:
                nn.functional.cross_entropy = lambda *a, **k: original(*a, **k) * 1.5
            return super().forward(student, teacher, batch)

    options = {"checkpoint_every": 1, **made_with}
    Lockstep([learner(Labels(), "a", "alone")], feed, teacher, heard, **options).run()
    first = Lockstep([learner(Replaces(), "r"), learner(Labels(), "a")], feed, teacher, heard, **options)
    first.run()
    assert [one.id for one in first.withdrawn] == ["r", "a"]
    assert first.replaced == ["torch.nn.functional.cross_entropy"]
    assert heard.errors == {}
    second = [learner(Replaces(), "r"), learner(Labels(), "a")]
    Lockstep(second, feed, teacher, heard, watchful=True, **options).run()
    assert nn.functional.cross_entropy is original
    assert heard.errors["r"].message == (
        "its method or its network changed global state: torch.nn.functional.cross_entropy; "
        "a plugin must restore what it changes"
    )
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "a"))


def test_a_forged_write_error_is_its_own_and_a_true_one_ends_the_run(learner, train, heard, tmp_path):
    from kdbench.errors import ResultsError

    class Forges(Labels):
        def get_extra_state(self):
            raise ResultsError("no disk")

        def set_extra_state(self, state):
            pass

    train(learner(Forges(), "f"), learner(Labels(), "a"))
    assert heard.errors["f"].message == "no disk"
    assert heard.results["a"].done
    stuck = learner(Labels(), "s")
    (tmp_path / "s" / "epochs.jsonl").mkdir()
    with pytest.raises(ResultsError, match=r"epochs\.jsonl"):
        train(stuck)


def test_what_a_plugin_drew_from_global_generators_does_not_reach_its_neighbours(learner, train, tmp_path):
    import random

    import numpy as np

    class Draws(Labels):
        def noise(self):
            return random.random() + float(np.random.rand()) + torch.rand(()).item()

        def forward(self, student, teacher, batch):
            return {"ce": (batch.cross_entropy(student.logits), 1.0 + self.noise())}

    class Seeds(Labels):
        def forward(self, student, teacher, batch):
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            return super().forward(student, teacher, batch)

    train(learner(Draws(), "a", "alone"))
    train(learner(Seeds(), "s"), learner(Draws(), "a"))
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "a"))


class Distils(Labels):
    def forward(self, student, teacher, batch):
        return {"mse": ((student.logits - teacher.logits).square().mean(), 1.0)}


class Foreign(nn.Module):
    """A third party's network around another one, which does ``what`` in each call."""

    def __init__(self, network, what):
        super().__init__()
        self.network, self.what = network, what

    def forward(self, images, reads=()):
        taps = self.network(images, reads)
        return {**taps, "logits": self.what(taps["logits"])}


@pytest.fixture
def run_with(feed, teacher, heard, made_with):
    """``run_with(what, *learners)`` behind a teacher of a third party that does ``what``; gives the cohort."""

    def run(what, *learners, **options):
        behind = replace(teacher, network=Foreign(teacher.network, what), foreign=True)
        lockstep = Lockstep(learners, feed, behind, heard, checkpoint_every=1, **made_with, **options)
        lockstep.run()
        return lockstep

    return run


def test_a_teacher_that_draws_random_numbers_shows_a_student_the_same_beside_others(learner, run_with, heard, tmp_path):
    run_with(nn.functional.dropout, learner(Distils(), "a", "alone"))
    alone = heard.results["a"].metrics["kl_to_teacher"]
    run_with(nn.functional.dropout, learner(Distils(), "a", "beside"), learner(Careless(), "c", lr=0.01))
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "beside"))
    assert heard.results["a"].metrics["kl_to_teacher"] == alone


@pytest.mark.parametrize("late", [False, True])
def test_a_teacher_that_replaces_a_function_is_blamed_and_no_student(learner, run_with, heard, late):
    original = nn.functional.cross_entropy
    calls = []

    def replaces(logits):
        calls.append(1)
        if len(calls) > late:
            nn.functional.cross_entropy = lambda *a, **k: original(*a, **k) * 1.5
        return logits

    options = {"foreign": ()}
    first = run_with(replaces, learner(Labels(), "a", **options))
    # In the middle of an epoch nobody knows who it was: a watchful cohort finds out.
    assert [one.id for one in first.withdrawn] == (["a"] if late else [])
    if late:
        assert heard.errors == {}
        calls.clear()
        run_with(replaces, learner(Labels(), "a", **options), watchful=True)
    assert nn.functional.cross_entropy is original
    assert heard.errors["a"].message == (
        "its teacher failed: the teacher's network changed global state: torch.nn.functional.cross_entropy; "
        "a plugin must restore what it changes"
    )


CONSTANT = torch.ones(10)


def test_a_constant_that_instances_register_as_a_buffer_is_copied(learner, train, heard, tmp_path):
    class Counts(Labels):
        def setup(self, student, teacher, data):
            self.register_buffer("seen", CONSTANT)

        def forward(self, student, teacher, batch):
            self.seen += 1
            return {"ce": (batch.cross_entropy(student.logits * self.seen), 1.0)}

    train(learner(Counts(), "a", "alone"))
    train(learner(Counts(), "b", lr=0.01), learner(Counts(), "a", "beside"))
    assert heard.errors == {}
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "beside"))
    assert CONSTANT.tolist() == [1] * 10


@pytest.mark.parametrize("training", [True, False])
def test_who_writes_into_the_images_fails_and_those_that_would_read_them_after_it(
    learner, train, heard, tmp_path, training
):
    train(learner(Labels(), "a", "alone"))
    writes = learner(Labels(), "w", foreign=())

    def write(network, arguments):
        if network.training == training:
            arguments[0].zero_()

    writes.student.network.register_forward_pre_hook(write)
    train(learner(Labels(), "a", foreign=()), writes, learner(Labels(), "b", foreign=()))
    assert heard.errors["w"].message.startswith("it wrote into the teacher's outputs or the batch")
    assert heard.errors["b"].message == "w wrote into the images of a batch before they reached this student"
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "a"))


class Untaught(Labels):
    needs_teacher = False  # a third party's teacher gets a copy of the images


def test_no_step_copies_the_images(learner, train, feed, monkeypatch):
    largest = max(batch.labels.numel() for batch in feed.epoch("main", 0))
    copied, clone = [], torch.Tensor.clone

    def count(tensor, *arguments, **options):
        copied.append(tuple(tensor.shape))
        return clone(tensor, *arguments, **options)

    one = learner(Untaught(), foreign=())
    monkeypatch.setattr(torch.Tensor, "clone", count)
    train(one)
    assert (largest,) in copied  # labels are
    assert not [shape for shape in copied if shape[1:] == (1, 8, 8)]
