"""Finds learners with an identical first stage without the student, so that one of them trains it for all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdbench.engine.learner import Learner
from kdbench.engine.phase import Phase

# All other fields of a recipe must be equal. New fields of recipes are compared until they are listed here.
WITHOUT_EFFECT = frozenset(
    {
        # A first stage has its own number of epochs, which is compared.
        "epochs",
        # A first stage has a constant rate, which is compared: its own, or the recipe's lr.
        "lr",
        # The schedule applies only to the main stage.
        "schedule",
        "drops",
        "drop_factor",
        "warmup_epochs",
        "min_lr",
        # The learners of a cohort share the feed, and the teacher pass with its precision.
        "batch_size",
        "augmentation",
        "precision",
        # These apply to the student, which is not run: its average, its stochastic depth, its evaluation, the choice of
        # its weights.
        "ema_decay",
        "drop_path",
        "evaluate_every",
        "selection",
    }
)
"""Recipe fields that may differ between two trainings that share a stage without the student."""


def share_stage(one: Learner, other: Learner) -> bool:
    """Whether both learn the same weights in their current stage: no student, equal settings, equal state."""
    mine, yours = one.trainer.phase, other.trainer.phase
    methods = one.student.method, other.student.method
    if mine.uses_student or yours.uses_student or type(methods[0]) is not type(methods[1]):
        return False
    if _schedule(mine) != _schedule(yours) or _relevant(one) != _relevant(other):
        return False
    return all(_equal(*(method.get_submodule(name).state_dict() for method in methods)) for name in mine.trains)


def _schedule(phase: Phase) -> tuple[object, ...]:
    return phase.name, phase.trains, phase.epochs, phase.rate(0.0)


def _relevant(learner: Learner) -> tuple[object, ...]:
    recipe = learner.recipe.model_dump(exclude=set(WITHOUT_EFFECT))
    return recipe, learner.settings, learner.made_with


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
