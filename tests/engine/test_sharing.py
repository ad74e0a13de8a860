"""Who shares a stage without the student."""

from __future__ import annotations

import pytest
from torch import nn

from kdbench.engine.sharing import WITHOUT_EFFECT, share_stage
from kdbench.method import Batch, Method, Output, Stage, Terms
from kdbench.recipe import Part, Recipe


class Encoder(Method):
    """A stage that needs no student, as FT's paraphraser."""

    reads = frozenset({"logits", "stage-1"})

    def setup(self, student, teacher, data):
        self.encoder = nn.Conv2d(64, 8, 1)

    def stages(self):
        return [Stage("encode", self.first, 2, ("encoder",), frozenset({"stage-1"}), uses_student=False)]

    def first(self, student, teacher, batch):
        return {"size": (self.encoder(teacher["stage3"]).square().mean(), 1.0)}

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}


@pytest.fixture
def shared(learner):
    """Whether two learners of equal methods share the stage under these recipes."""

    def ask(one, other):
        a, b = learner(Encoder(), "a"), learner(Encoder(), "b")
        a.recipe, b.recipe = one, other
        return share_stage(a, b)

    return ask


OTHER = {
    "epochs": 9,
    "batch_size": 7,
    "optimizer": Part(name="adamw"),
    "lr": 0.01,
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.1,
    "schedule": Part(name="cosine"),
    "drops": (1,),
    "drop_factor": 0.5,
    "warmup_epochs": 1,
    "min_lr": 0.01,
    "label_smoothing": 0.1,
    "clip_grad_norm": 1.0,
    "ema_decay": 0.9,
    "drop_path": 0.1,
    "augmentation": (Part(name="flip"),),
    "precision": "bf16",
    "selection": "validation",
    "evaluate_every": 3,
}
"""For each field of a recipe another value than its default."""


def test_every_field_is_compared_but_those_without_effect(shared):
    assert OTHER.keys() == Recipe.model_fields.keys() >= WITHOUT_EFFECT
    usual = Recipe(epochs=2)
    assert shared(usual, usual)
    matter = {name for name, value in OTHER.items() if not shared(usual, usual.model_copy(update={name: value}))}
    assert matter == Recipe.model_fields.keys() - WITHOUT_EFFECT


def test_a_field_that_is_added_to_recipes_is_compared(shared):
    class Noisy(Recipe):
        noise: float = 0.0

    assert shared(Noisy(epochs=2, noise=0.5), Noisy(epochs=2, noise=0.5))
    assert not shared(Noisy(epochs=2, noise=0.5), Noisy(epochs=2))


@pytest.mark.parametrize("what", ["settings", "made_with"])
def test_settings_teacher_and_data_are_compared(learner, what):
    one, other = learner(Encoder(), "a"), learner(Encoder(), "b")
    setattr(other, what, {"key": "another"})
    assert not share_stage(one, other)


def test_the_state_is_compared(learner):
    one, other = learner(Encoder(), "a"), learner(Encoder(), "b")
    assert share_stage(one, other)
    nn.init.zeros_(other.student.method.encoder.bias)
    assert not share_stage(one, other)
