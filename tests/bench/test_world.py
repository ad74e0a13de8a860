"""The engine's lockstep, paced: how many steps it takes, and what they change."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdbench.bench import world as module
from kdbench.bench.world import Cohort, PacedFeed, Variant
from kdbench.engine.graphs.tape import record
from kdbench.errors import Incompatible, TrialError
from kdbench.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=16)


@pytest.fixture
def cohort(tiny):
    """``cohort(*methods)``: its learners, and the cohort."""

    def make(*methods):
        teacher = tiny.teacher("resnet8")
        learners = [tiny.learner(f"l{i}", "resnet8", teacher, name, RECIPE) for i, name in enumerate(methods)]
        batch = tiny.batch(RECIPE)
        return learners, Cohort(tiny, learners, teacher, lambda: itertools.repeat(batch))

    return make


def test_as_many_steps_as_asked_for(cohort, monkeypatch):
    """The clock passes a second with each step; three steps count, of those after the first."""
    learners, paced = cohort("none", "kd")
    ticks = itertools.count()
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for learner in learners:
        step = learner.trainer.step

        def slow(*args, step=step):
            now[0] += 0.5
            next(ticks)
            step(*args)

        monkeypatch.setattr(learner.trainer, "step", slow)
    assert paced.seconds_per_step(3) == pytest.approx(1.0)
    assert next(ticks) == 2 * 4
    # The epoch goes on: nothing was evaluated or written.
    assert all(learner.active and learner.progress.epoch == 0 for learner in learners)
    assert not learners[0].folder.path.exists()


def test_students_train(cohort):
    learners, paced = cohort("none", "kd")
    before = [next(learner.student.network.parameters()).detach().clone() for learner in learners]
    paced.seconds_per_step(1)
    after = [next(learner.student.network.parameters()) for learner in learners]
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_stages_before_the_main_one_are_left_out(tiny):
    learner = tiny.learner("a", "resnet8", tiny.teacher("resnet8"), "ft", RECIPE)
    assert learner.trainer.in_main


def test_a_learner_that_fails_is_an_error(cohort, monkeypatch):
    learners, paced = cohort("none", "kd")

    def broken(*args):
        raise ValueError("no good")

    monkeypatch.setattr(learners[1].student.method, "forward", broken)
    with pytest.raises(TrialError, match="no good"):
        paced.seconds_per_step(2)


def test_ctrl_c_is_no_error_of_a_learner(cohort, monkeypatch):
    learners, paced = cohort("none")

    def pressed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(learners[0].student.method, "forward", pressed)
    with pytest.raises(KeyboardInterrupt):
        paced.seconds_per_step(2)


def test_a_method_that_cannot_read_the_networks(tiny):
    with pytest.raises(Incompatible):
        tiny.learner("a", "deit_micro", tiny.teacher("resnet8"), "fsp", RECIPE)


def test_the_feed_starts_again_when_its_images_are_used_up():
    feed = PacedFeed(lambda: iter("ab"), 2, torch.device("cpu"))
    feed.arm(0, 5)
    batches = feed.epoch("main", 0)
    assert [next(batches) for _ in range(5)] == ["a", "b", "a", "b", "a"]
    assert feed.overdue()
    # The next steps take up where these ended.
    feed.arm(1, 1)
    assert next(feed.epoch("main", 0)) == "b"
    assert not feed.overdue()


def test_a_cohort_says_which_steps_are_executed(tiny):
    """On a tape, as on a GPU with CUDA graphs."""
    variant = Variant("tape", lockstep={"make_recorder": lambda generators: record})
    teacher = tiny.teacher("resnet8")
    learners = [tiny.learner(name, "resnet8", teacher, name, RECIPE) for name in ("kd", "kdsvd")]
    batch = tiny.batch(RECIPE)
    paced = Cohort(tiny, learners, teacher, lambda: itertools.repeat(batch), variant)
    assert paced.executed == []
    paced.seconds_per_step(4)
    [reason] = paced.executed
    assert reason.startswith("kdsvd: ")


def test_teachers_are_folded_as_in_a_run(tiny):
    plain, folded = (tiny.teacher("resnet8", fold=fold).network for fold in (False, True))
    images = torch.randn(2, *tiny.image_shape)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) for network in (plain, folded)]
    assert norms[0] > norms[1] == 0
    torch.testing.assert_close(folded(images)["logits"], plain(images)["logits"])


def test_the_recipe_decides_on_stochastic_depth(tiny):
    recipe = RECIPE.model_copy(update={"drop_path": 0.5})
    learner = tiny.learner("a", "deit_micro", tiny.teacher("resnet8"), "kd", recipe)
    rates = [m.drop_prob for m in learner.student.network.modules() if hasattr(m, "drop_prob")]
    assert max(rates) == 0.5
