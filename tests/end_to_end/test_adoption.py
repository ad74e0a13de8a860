"""A training that reads nothing of the teacher is run once, and serves the student's pairs with all teachers.

Reference is always the separate training: the same pair in a results folder of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kdbench_methods.none import NoDistillation
from safetensors.torch import load_file

from kdbench.hookspecs import hookimpl
from kdbench.results import TrialFolder, read_correct
from kdbench.status import Status

SECOND = '[[pairs]]\nteacher = "resnet14"\nstudent = "resnet8"\n'
ALONE = {"pairs": ["resnet14:resnet8"]}
EPOCHS = [("none", 1), ("none", 2), ("none", 3)]
TEACHER_METRICS = {"agreement", "kl_to_teacher"}


@pytest.fixture
def suite(write_suite) -> Path:
    """Two teachers of one student."""
    return write_suite("none", "kd", more=SECOND)


@pytest.fixture
def train(run) -> Callable[..., Any]:
    """The same as ``run``, without a report."""
    return partial(run, with_report=False)


def trials(results: Any, label: str = "none") -> dict[str, TrialFolder]:
    """The finished trials of a method, by the name of their teacher."""
    found = [trial for trial in results.plan.trials if trial.label == label and trial.status is not Status.PENDING]
    return {trial.teacher.name: results.folder.trial(trial.id) for trial in found}


def none_epochs(watch: Any) -> list[tuple[str, int]]:
    return [epoch for epoch in watch.epochs if epoch[0] == "none"]


def assert_same_student(one: TrialFolder, other: TrialFolder) -> None:
    ours, theirs = load_file(one.weights), load_file(other.weights)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)
    assert one.result.metrics == other.result.metrics
    assert list(read_correct(one)) == list(read_correct(other))
    assert one.damage(thorough=True) == ""


def test_the_baseline_of_two_teachers_is_trained_once_and_each_pair_has_its_own_metrics(
    suite, run, train, watch, tmp_path, monkeypatch
):
    steps = []
    forward = NoDistillation.forward
    monkeypatch.setattr(NoDistillation, "forward", lambda *given: steps.append(1) or forward(*given))
    both = run(suite)
    # Three epochs of two batches.
    assert (none_epochs(watch), len(steps)) == (EPOCHS, 6)
    assert [heard for heard in watch.heard if heard[-1] == "none"] == [("started", "none"), (Status.DONE, "none")] * 2
    page = (tmp_path / "reports/tiny/index.html").read_text()
    assert "trained once for all teachers of a student: 1 of 2 results are copies." in page

    alone = train(suite, output="alone", **ALONE)
    assert (none_epochs(watch), len(steps)) == (EPOCHS, 12)
    metrics = trials(both)["resnet8"].result.metrics
    first, adopted = trials(both)["resnet8"], trials(both)["resnet14"]
    separate = trials(alone)["resnet14"]
    assert_same_student(adopted, separate)
    assert_same_student(trials(both, "kd")["resnet14"], trials(alone, "kd")["resnet14"])
    # The teachers differ, and so does what compares with them.
    assert adopted.result.metrics["kl_to_teacher"] != first.result.metrics["kl_to_teacher"]
    assert adopted.result.teacher.sha256 == separate.result.teacher.sha256
    assert adopted.result.adopted_from == adopted.result.trained_as == first.result.trained_as == first.identifier
    assert (first.result.adopted_from, separate.result.adopted_from) == (None, None)
    assert adopted.result.cost == first.result.cost

    *early, last = adopted.epochs
    *separate_early, separate_last = separate.epochs
    assert last.metrics == separate_last.metrics
    for ours, theirs in zip(early, separate_early, strict=True):
        assert ours.metrics == {name: theirs.metrics[name] for name in theirs.metrics.keys() - TEACHER_METRICS}
        assert (ours.epoch, ours.train_loss, ours.terms) == (theirs.epoch, theirs.train_loss, theirs.terms)

    # It does not need the one that was trained.
    shutil.rmtree(first.path)
    again = train(suite, **ALONE)
    assert watch.epochs == []
    assert trials(again)["resnet14"].result == adopted.result
    # The latter adopts its own training, which the other one has kept, and is then as it was.
    restored = trials(train(suite))["resnet8"]
    assert watch.epochs == []
    assert restored.result.adopted_from is None
    assert restored.result.metrics == metrics


class StopsAfter:
    """Asks the run to stop after the first epochs of some method, as Ctrl-C does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    @hookimpl
    def kdbench_epoch_finished(self, trial, record):
        if (trial.label, record.epoch) == ("none", self.epoch):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_trial_with_a_checkpoint_goes_on_and_the_others_adopt_its_result(suite, train, watch):
    assert train(suite, observers=[StopsAfter(2)], methods=["none"], **ALONE).interrupted
    both = train(suite, methods=["none"])
    # Though it comes later in the suite.
    assert none_epochs(watch) == EPOCHS[2:]
    assert trials(both)["resnet8"].result.adopted_from == trials(both)["resnet14"].identifier
    assert trials(both)["resnet14"].result.adopted_from is None


def test_after_an_interruption_the_first_one_resumes_and_fresh_trains_what_is_chosen(suite, train, watch):
    assert train(suite, observers=[StopsAfter(1)], methods=["none"]).interrupted
    both = train(suite, methods=["none"])
    assert none_epochs(watch) == EPOCHS[1:]
    assert trials(both)["resnet14"].result.adopted_from == trials(both)["resnet8"].identifier

    chosen = train(suite, fresh=True, methods=["none"], **ALONE)
    assert none_epochs(watch) == EPOCHS
    assert trials(chosen)["resnet14"].result.adopted_from is None
    all_again = trials(train(suite, fresh=True, methods=["none"]))
    assert none_epochs(watch) == EPOCHS
    assert all_again["resnet14"].result.adopted_from == all_again["resnet8"].identifier


def test_a_damaged_result_is_not_adopted_but_trained(suite, train, watch):
    first = trials(train(suite, pairs=["resnet8:resnet8"], methods=["none"]))["resnet8"]
    before = first.weights.stat()
    content = bytearray(first.weights.read_bytes())
    content[-1] ^= 1
    first.weights.write_bytes(content)
    # As it was, by size and time: only reading it shows the damage.
    os.utime(first.weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    said = []
    both = train(suite, warn=said.append, methods=["none"], **ALONE)
    second = trials(both)["resnet14"]
    assert none_epochs(watch) == EPOCHS
    assert second.result.adopted_from is None
    assert said == [
        f"{first.path}: damaged: student.safetensors does not match its checksum; {second.identifier} does not adopt "
        "this result"
    ]


def test_a_divergence_is_adopted_too(suite, train, watch):
    diverging = {"overrides": ["recipe.lr=1e19", "teachers.resnet8.recipe.lr=0.01", "teachers.resnet14.recipe.lr=0.01"]}
    both = trials(train(suite, methods=["none"], **diverging))
    assert len(none_epochs(watch)) == len(both["resnet8"].epochs) == len(both["resnet14"].epochs)
    assert [one.result.status for one in both.values()] == [Status.DIVERGED] * 2
    assert both["resnet14"].result.adopted_from == both["resnet8"].identifier
    assert not both["resnet14"].weights.exists()


METRIC = """
from kdbench.hookspecs import MetricSpec, hookimpl

@hookimpl
def kdbench_metrics():
    return [MetricSpec("gap", "gap:gap", needs_teacher=True), MetricSpec("largest", "gap:largest")]

def gap(logits, labels, teacher_logits):
    return (logits - teacher_logits).abs().mean()

def largest(logits, labels):
    return logits.max()
"""


def test_metrics_that_the_suite_adds_compare_with_the_own_teacher(write_suite, train, tmp_path, watch):
    (tmp_path / "gap.py").write_text(METRIC)
    suite = write_suite("none", more=SECOND, plugins=("gap.py",))
    suite.write_text('metrics = ["gap", "largest"]\n' + suite.read_text())
    both, alone = trials(train(suite)), trials(train(suite, output="alone", **ALONE))
    assert both["resnet14"].result.adopted_from == both["resnet8"].identifier
    assert both["resnet14"].result.metrics == alone["resnet14"].result.metrics
    assert both["resnet14"].result.metrics["gap"] != both["resnet8"].result.metrics["gap"]
    assert set(both["resnet14"].epochs[0].metrics) >= {"largest", "top1"}
    assert not set(both["resnet14"].epochs[0].metrics) & {"gap", *TEACHER_METRICS}


def test_a_student_with_stochastic_depth_draws_the_same_numbers_with_each_teacher(write_suite, train, watch):
    suite = write_suite("none", more='[[pairs]]\nteacher = "resnet14"\nstudent = "deit_micro"\n')
    suite.write_text(suite.read_text().replace('student = "resnet8"', 'student = "deit_micro"'))
    teachers = [f"teachers.{name}.recipe.drop_path=0.0" for name in ("resnet8", "resnet14")]
    changes = {"overrides": ["recipe.epochs=1", "recipe.drop_path=0.2", *teachers]}
    both = trials(train(suite, **changes))
    assert none_epochs(watch) == EPOCHS[:1]
    alone = trials(train(suite, output="alone", pairs=["resnet14:deit_micro"], **changes))
    ours, theirs = (load_file(found["resnet14"].weights) for found in (both, alone))
    assert all(ours[key].equal(theirs[key]) for key in ours)
