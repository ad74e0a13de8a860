"""Warnings to the reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdbench.report.protocol import paragraphs, teacher_recipe
from kdbench.report.study import read_study


def test_precisions_mixed_within_a_pair_give_a_warning_and_across_pairs_do_not(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, precision in (("none", "float32"), ("kd", "float32")):
        suite.done("resnet20", "resnet8", label, 0, 70.0, environment={"device": "cpu", "precision": precision})
    for label, precision in (("none", "bf16"), ("kd", "bf16")):
        suite.done("resnet20", "resnet14", label, 0, 70.0, environment={"device": "cpu", "precision": precision})
    assert not any("precisions" in text for text in paragraphs(read_study(suite.write())))
    suite.done("resnet20", "resnet8", "vid", 0, 70.0, environment={"device": "cpu", "precision": "bf16"})
    assert paragraphs(read_study(suite.write()))[-1] == (
        "Warning: students of one pair were trained in different precisions: resnet20 → resnet8 (bf16 and float32)."
    )


def test_a_teacher_trained_as_the_students_is_shown_so_where_drops_are_fractions(runs: Callable[..., Any]) -> None:
    suite = runs(epochs=240, drops=[0.625, 0.75, 0.875])
    suite.teacher("resnet56", 80.0, epochs=240)
    suite.teacher("resnet110", 81.0, epochs=120)
    for teacher in ("resnet56", "resnet110"):
        suite.done(teacher, "resnet8", "none", 0, 70.0)
    study = read_study(suite.write())
    shown = {
        name: teacher_recipe(study, study.folder.teacher(plan.key).description)
        for name, (plan, _) in suite.teachers.items()
    }
    assert shown == {"resnet56": "same as the students", "resnet110": "epochs 120, drops 75; 90; 105"}
