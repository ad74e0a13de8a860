"""What a report's folder is called, and which results it would lose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.report.naming import lost, report_name
from kdbench.report.render import render
from kdbench.report.study import read_study
from kdbench.results import SuiteFolder


@pytest.mark.parametrize("overrides", [
    ["recipe.epochs=2", "data.name=digits"], ["data.name = digits", "recipe.epochs = 2"],
    [" recipe.epochs =2", "name=other", "data.name= digits"],
])  # fmt: skip
def test_equal_overrides_have_one_folder(overrides: list[str]) -> None:
    assert report_name("digits", overrides) == "digits--data.name=digits--recipe.epochs=2"


def test_of_two_values_of_a_key_the_order_counts() -> None:
    assert report_name("digits", ["recipe.epochs=2", "recipe.epochs=3"]) != report_name(
        "digits", ["recipe.epochs=3", "recipe.epochs=2"]
    )


def study(runs: Callable[..., Any], suite: str, top1: dict[str, float], **recipe: Any) -> SuiteFolder:
    made = runs(suite, **recipe)
    made.teacher("resnet20", 80.0)
    for label, value in top1.items():
        made.done("resnet20", "resnet8", label, 0, value, method="kd")
    folder: SuiteFolder = made.write()
    return folder


def test_a_retrained_trial_is_not_lost_whatever_its_label_looks_like(runs: Callable[..., Any], tmp_path: Path) -> None:
    report = render(study(runs, "digits", {"1": 70.0, "1e3": 71.0}), tmp_path / "report", plots=False).parent
    # Another recipe, so other trials, under the same labels.
    again = read_study(study(runs, "retrained", {"1": 70.5, "1e3": 71.5}, lr=0.1))
    assert lost(report, again.trials) == ""
    fewer = read_study(study(runs, "fewer", {"1": 70.5}, lr=0.1))
    assert "1 finished trial that the new one does not (1e3)" in lost(report, fewer.trials)
