"""The suite of the named variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.run import open_suite

SUITES = Path(__file__).parents[2] / "suites"

VARIANTS = {
    "kd/keras",
    "kd/akida",
    "kd/easytransfer-mse",
    "kd/easytransfer-xent",
    "kd/easytransfer-kld",
    "probes",
    "deit/soft",
    "deit/hard",
    "deit/none",
    "deit/akida-soft",
    "deit/akida-hard",
    "ft/paper",
    "ab/paper",
    "rkd/distance",
    "rkd/angle",
}
VARIED = {"none", "kd", "ft", "ab", "rkd"}


@pytest.fixture(scope="module")
def plan():
    return open_suite(SUITES / "classics.toml").plan


def test_every_named_variant_is_listed_with_its_base_method(plan):
    assert {trial.method for trial in plan.trials} == VARIANTS | VARIED
    assert all(trial.label == trial.method for trial in plan.trials)


def test_only_activation_boundaries_are_skipped_and_only_on_the_transformer(plan):
    skipped = {(trial.student, trial.method): trial.reason for trial in plan.trials if trial.status == "skipped"}
    reason = "ab needs pre-activation taps; deit_micro has none"
    assert skipped == {("deit_micro", "ab"): reason, ("deit_micro", "ab/paper"): reason}


def test_the_teacher_is_that_of_the_digits_suite(plan):
    digits = open_suite(SUITES / "digits.toml").plan
    assert [teacher.key for teacher in plan.teachers] == [teacher.key for teacher in digits.teachers]


def test_first_stages_are_short_as_the_training_is(plan):
    epochs = {t.method: [v for k, v in t.settings.items() if k.endswith("_epochs")] for t in plan.trials}
    assert {name: values for name, values in epochs.items() if values} == {
        "ab": [4],
        "ab/paper": [4],
        "ft": [4],
        "ft/paper": [4],
        "probes": [5],
    }
