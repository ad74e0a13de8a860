"""The tuned suite: what it extends, changes and records, in TOML that reads back."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.opening import open_suite
from kdbench.suite.schema import Tuning
from kdbench.tune.derived import suite_of_configurations, tuned_suite
from kdbench.tune.outcome import Row
from kdbench.tune.space import spaces

PAIR = "resnet8:resnet8"


def chosen_in(path: Path, target: Path, chosen: dict[str, dict[str, Any]], **options: Any) -> dict[str, Any]:
    """The tables of the tuned suite, where the second configuration of each method is the best."""
    opened = open_suite(path, **options)
    found = [
        Row(space, [space.default, chosen[space.label]], [(10.0, ""), (20.0, "")])
        for space in spaces(opened, opened.suite.pairs[0], 0, list(chosen))
    ]
    tuning = Tuning(pair=PAIR, seed=0, trials=2, methods={row.space.label: row.record() for row in found})
    target.parent.mkdir(exist_ok=True)
    target.write_text(tuned_suite(opened, found, tuning, target))
    return tomllib.loads(target.read_text())


def test_methods_that_were_not_tuned_are_kept_as_they_are(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write("none", "kd", more="temperature = 3.0\n")
    target = tmp_path / "else" / "where.toml"
    tables = chosen_in(path, target, {"kd": {"lr_factor": 2.0, "temperature": 5.0, "kd_weight": 1.5}})
    assert tables["extends"] == "../tiny.toml"
    assert tables["methods"] == [
        {"name": "none"},
        {"name": "kd", "temperature": 5.0, "lr_factor": 2.0, "kd_weight": 1.5},
    ]
    [kd] = [t for t in open_suite(target).plan.trials if t.label == "kd" and t.seed == 1]
    assert (kd.settings["temperature"], kd.settings["kd_weight"], kd.recipe.lr) == (5.0, 1.5, 0.1)


def test_the_record_changes_no_trial(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write("none", "kd")
    target = tmp_path / "runs" / "tiny-tuned.toml"
    same = {"none": {"lr_factor": 1.0}, "kd": {"lr_factor": 1.0, "temperature": 4.0, "kd_weight": 0.9}}
    chosen_in(path, target, same)
    assert [t.id for t in open_suite(target).plan.trials] == [t.id for t in open_suite(path).plan.trials]


def test_overridden_keys_are_part_of_the_tuned_suite(tmp_path: Path, write: Callable[..., Path]) -> None:
    target = tmp_path / "tuned.toml"
    tables = chosen_in(write("none"), target, {"none": {"lr_factor": 2.0}}, overrides=["recipe.epochs=7", "seeds=[0]"])
    assert (tables["recipe"]["epochs"], tables["seeds"]) == (7, [0])
    assert {(t.recipe.epochs, t.seed) for t in open_suite(target).plan.trials} == {(7, 0)}


def test_on_the_pair_of_the_tuning_chosen_settings_replace_its_exceptions(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write("kd")
    student = 'student = "resnet8"\n'
    exceptions = "methods.kd = { temperature = 2.0, ce_weight = 0.3 }\n"
    other = '[[pairs]]\nteacher = "resnet14"\n' + student + exceptions
    path.write_text(path.read_text().replace(student, student + exceptions + other))
    target = tmp_path / "tuned.toml"
    chosen_in(path, target, {"kd": {"lr_factor": 1.0, "temperature": 5.0, "kd_weight": 1.5}})
    found = {t.pair: (t.settings["temperature"], t.settings["ce_weight"]) for t in open_suite(target).plan.trials}
    assert found == {PAIR: (5.0, 0.3), "resnet14:resnet8": (2.0, 0.3)}


def test_a_suite_from_python_is_written_whole(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    given = tomllib.loads(suite_text("none"))
    opened = open_suite(given)
    [space] = spaces(opened, opened.suite.pairs[0], 0)
    row = Row(space, [space.default, {"lr_factor": 0.5}], [(10.0, ""), (20.0, "")])
    tuning = Tuning(pair=PAIR, seed=0, trials=2, methods={"none": row.record()})
    text = tuned_suite(opened, [row], tuning, tmp_path / "tuned.toml")
    tables = tomllib.loads(text)
    assert tables.pop("tuning")["methods"]["none"]["chosen"] == {"lr_factor": 0.5}
    assert tables == {**given, "methods": [{"name": "none", "lr_factor": 0.5}]}


def test_the_suite_of_configurations_has_the_teacher_of_the_suite(write: Callable[..., Path]) -> None:
    more = "[teachers.resnet8]\nrecipe = { epochs = 3 }\n"
    path = write("none", more=more)
    opened = open_suite(path)
    rows = [{"name": "none", "label": "none#00"}]
    for seed in (0, 1):
        derived = open_suite(suite_of_configurations(opened, "tiny-tune", opened.suite.pairs[0], seed, rows))
        [trial] = derived.plan.trials
        [own] = [t for t in opened.plan.trials if t.seed == seed]
        assert trial.teacher.key == own.teacher.key
        assert trial.recipe.selection == "validation"
        assert trial.recipe.model_copy(update={"selection": "last"}) == own.recipe
