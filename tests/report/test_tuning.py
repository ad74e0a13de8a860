"""How the report says what was tuned."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kdbench.report.protocol import paragraphs, recipe_rows
from kdbench.report.render import render
from kdbench.report.sections import tuning
from kdbench.report.study import Study, read_study
from kdbench.report.tuning import UNTUNED

RECORD = {
    "pair": "resnet20:resnet8",
    "seed": 3,
    "trials": 8,
    "methods": {
        "kd": {
            "trials": 8,
            "without_result": 1,
            "space": {"temperature": {"low": 1.0, "high": 16.0, "log": True}},
            "default": {"temperature": 4.0},
            "chosen": {"temperature": 2.5},
            "default_top1": 80.0,
            "chosen_top1": 81.5,
        }
    },
}


def study(runs: Callable[..., Any], record: Any, **kd: Any) -> Study:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label in ("none", "kd"):
        suite.done("resnet20", "resnet8", label, 0, 70.0)
    suite.tables = {"methods": [{"name": "none"}, {"name": "kd", **kd}]}
    if record is not None:
        suite.tables["tuning"] = record
    return read_study(suite.write())


def test_without_a_record_the_protocol_says_that_nothing_was_tuned(runs: Callable[..., Any]) -> None:
    found = study(runs, None)
    assert UNTUNED in paragraphs(found)
    assert tuning(found) is None


def test_a_record_is_shown_with_budget_values_default_and_choice(runs: Callable[..., Any]) -> None:
    found = study(runs, RECORD, temperature=2.5, lr_factor=0.5)
    shown = tuning(found)
    assert shown is not None
    assert (shown["pair"], shown["seed"], shown["budget"]) == ("resnet20 → resnet8", 3, "8 configurations")
    none, kd = shown["rows"]
    assert (none["trials"], none["note"]) == (0, "not tuned")
    assert kd["settings"] == [
        {"name": "temperature", "tried": "1 to 16 (log scale)", "default": "4", "chosen": "2.5", "is_kept": False}
    ]
    # A method has not the whole budget, so that the number of each is shown.
    assert shown["counted"]
    assert (kd["default_top1"], kd["chosen_top1"], kd["without_result"], kd["is_used"]) == (80.0, 81.5, 1, True)
    assert UNTUNED not in paragraphs(found)
    assert (
        "Methods were tuned with 8 configurations each, chosen by validation accuracy (section Tuning). The method "
        "none was not tuned, or has other settings than the chosen ones."
    ) in paragraphs(found)
    assert ("for kd", "learning rates × 0.5") in recipe_rows(found)


def test_settings_that_were_changed_after_the_tuning_are_named(runs: Callable[..., Any]) -> None:
    shown = tuning(study(runs, RECORD, temperature=7.0))
    assert shown is not None
    assert shown["rows"][1]["note"] == "this suite has other settings than the chosen ones"


def test_a_damaged_record_is_no_record(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0)
    found = read_study(suite.write(suite={**suite.record.suite, "tuning": {"pair": 3}}))
    assert tuning(found) is None
    assert UNTUNED in paragraphs(found)


def test_settings_are_written_without_exponents_or_trailing_zeros(runs: Callable[..., Any]) -> None:
    space = {
        "pkt_weight": {"low": 3000.0, "high": 300000.0, "log": True},
        "normalise": {"choices": [True, False]},
        "power": {"choices": [1, 2, 2.5]},
    }
    chosen = {"pkt_weight": 30000.0, "normalise": True, "power": 2.5}
    methods = {"kd": {"trials": 8, "space": space, "default": {**chosen, "power": 1}, "chosen": chosen}}
    shown = tuning(study(runs, {**RECORD, "methods": methods}, **chosen))
    assert shown is not None
    settings = shown["rows"][1]["settings"]
    assert [(one["tried"], one["default"], one["chosen"], one["is_kept"]) for one in settings] == [
        ("3000 to 300000 (log scale)", "30000", "30000", True),
        ("true and false", "true", "true", True),
        ("1, 2 and 2.5", "1", "2.5", False),
    ]


def test_with_one_budget_the_page_says_it_once(runs: Callable[..., Any], tmp_path: Any) -> None:
    same = {**RECORD["methods"]["kd"], "without_result": 0}
    found = study(runs, {**RECORD, "methods": {"none": {**same, "space": {}}, "kd": same}}, temperature=2.5)
    found.plan.suite["data"]["validation"] = 250
    shown = tuning(found)
    assert shown is not None
    assert (shown["counted"], shown["images"]) == (False, 250)
    folder = found.folder
    folder.write_plan(found.plan)
    text = " ".join(re.sub(r"<[^>]+>", " ", render(folder, tmp_path / "report", plots=False).read_text()).split())
    assert (
        "8 configurations of each method, the baseline included, were trained on resnet20 → resnet8 with seed 3" in text
    )
    assert "one of the 250 images is 0.40 points" in text
    assert "configurations setting" not in text
