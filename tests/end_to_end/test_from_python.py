"""Suites that are dictionaries, and losses that are classes of a notebook's cell."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import pytest

from kdbench.errors import KdbenchError, PluginError, SuiteError
from kdbench.export import export_trial
from kdbench.run import open_suite

HEADER = """
import torch.nn.functional as F
from kdbench.method import Method, NonNegative
"""
LOSS = """
class Distance(Method):
    def __init__(self, *, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, student, teacher, batch):
        distance = F.mse_loss(student.logits, teacher.logits)
        return {"ce": (batch.cross_entropy(student.logits), 1.0), "distance": (distance, self.weight)}
"""
SUITE: dict[str, Any] = {
    "name": "given",
    "question": "Does it run?",
    "seeds": range(1),
    "data": {"name": "digits", "train_limit": 96, "test_limit": 50},
    "recipe": {"epochs": 1},
    "pairs": [{"teacher": "resnet8", "student": "resnet8"}],
    "methods": ({"name": "none"}, {"name": "distance"}),
}


@pytest.fixture
def loss(cell):
    cell(HEADER)
    return cell(LOSS)["Distance"]


def test_a_dictionary_and_a_class_are_trained_once(run, watch, cell, loss, tmp_path):
    first = run(SUITE, plugins=[loss])
    assert {label for label, _ in watch.epochs} == {"none", "distance"}
    assert repr(first).startswith("<Results of given: 2 done; report: ")

    # Run again, the cell makes another class of the same code.
    again = cell(LOSS)["Distance"]
    assert again is not loss
    run(SUITE, plugins=[again])
    assert watch.epochs == []

    changed = run(SUITE, plugins=[cell(LOSS.replace("mse_loss", "l1_loss"))["Distance"]])
    assert watch.epochs == [("distance", 1)]
    trial = next(trial for trial in changed.plan.trials if trial.label == "distance")
    stored = (changed.folder.trial(trial.id).path / "source/method/Distance.py").read_text()
    assert "F.l1_loss(student.logits, teacher.logits)" in stored

    plan = json.loads((tmp_path / "runs/given/plan.json").read_text())
    assert (plan["path"], plan["plugins"], plan["classes"]) == (None, [], ["Distance"])
    read = json.loads(json.dumps(changed.folder.plan.to_json()))
    assert read == {key: value for key, value in plan.items() if key != "checksum"}
    for page in ("index.html", "leaderboard.md"):
        text = (tmp_path / "reports/given" / page).read_text()
        assert "kdbench run" not in text
        assert "The suite and the class Distance were passed from Python to kdbench.run_suite" in text

    weights = changed.folder.trial(trial.id).weights
    exported = export_trial(trial.id, "safetensors", tmp_path, output=tmp_path / "runs", plugins=[loss])
    assert exported.file.is_file()
    weights.unlink()
    with pytest.raises(KdbenchError, match=r"is missing; .* the same call of kdbench\.run_suite retrains the student"):
        export_trial(trial.id, "safetensors", output=tmp_path / "runs")


def test_a_suite_file_with_a_class_gives_no_command_either(run, write_suite, loss, tmp_path):
    results = run(write_suite("none", "distance"), plugins=[loss], methods=["none"])
    text = (results.report / "leaderboard.md").read_text()
    assert "kdbench run" not in text
    assert "The class Distance was passed from Python" in text


def test_a_dictionary_extends_by_name_and_by_path(write_suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HEADER + LOSS)
    write_suite("none")
    added = {"extends": "tiny.toml", "add_methods": [{"name": "distance"}], "plugins": ["mine.py"]}
    opened = open_suite(added)
    assert [method.name for method in opened.suite.methods] == ["none", "distance"]
    assert opened.report_name == "tiny-extended"
    # The plan's paths hold from any folder.
    assert opened.suite.plugins == (str(tmp_path / "mine.py"),)
    assert added == {"extends": "tiny.toml", "add_methods": [{"name": "distance"}], "plugins": ["mine.py"]}
    named = open_suite({"extends": "digits", "name": "other"}, overrides=["recipe.epochs=2"])
    assert (named.suite.name, named.suite.recipe.epochs, named.report_name) == ("other", 2, "other--recipe.epochs=2")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"recipe": {"epochs": 0}}, "<suite>: recipe.epochs: must be positive, got 0"),
        ({"recepie": {}}, "<suite>: recepie: unknown key; did you mean 'recipe'?"),
        ({"methods": [{"name": "distanse"}]}, "<suite>: methods[0].name: method 'distanse' is not registered; did you"),
        (
            {"question": None},
            "<suite>: question: must be a string, number, boolean, list or mapping, got None; leave the key out",
        ),
        ({"seeds": {0, 1}}, "<suite>: seeds: must be a string, number, boolean, list or mapping, got {0, 1}"),
        ({"data": {1: "digits"}}, "<suite>: data: keys must be strings, got 1"),
        ({"extends": "digit"}, "<suite>: extends: digit: no such file, and no shipped suite of that name; did you"),
    ],
)
def test_nok_a_dictionary(loss, change, problem):
    with pytest.raises(SuiteError) as error:
        open_suite({**SUITE, **change}, plugins=[loss])
    assert str(error.value).startswith(problem)


def test_problems_that_the_data_set_decides_name_the_suite_too():
    methods = [{"name": "none"}]
    opened = open_suite({**SUITE, "methods": methods, "recipe": {"epochs": 1, "batch_size": 500}})
    assert [remark.partition(" ")[0] for remark in opened.remarks] == ["<suite>:"]
    missing = {**SUITE, "methods": methods, "teachers": {"resnet8": {"weights": "there-is-none.pth"}}}
    with pytest.raises(SuiteError, match=r"^<suite>: teachers\.resnet8\.weights: .*there-is-none\.pth: no such file"):
        _ = open_suite(missing).plan


def test_nok_a_missing_plugin_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError) as error:
        open_suite({**SUITE, "plugins": ["mine.py"]})
    assert str(error.value) == f"<suite>: plugins[0]: plugin file {tmp_path / 'mine.py'}: not found"


def test_nok_a_class_in_the_suite_itself(loss):
    with pytest.raises(SuiteError, match="give classes to the argument plugins, and name them here"):
        open_suite({**SUITE, "plugins": [loss]})


@pytest.mark.parametrize("plugin", [3, int])
def test_nok_a_plugin_that_is_neither_file_nor_method(plugin):
    with pytest.raises(PluginError, match="plugins: must contain paths of files and Method classes, got "):
        open_suite(SUITE, plugins=[plugin])


def test_a_class_of_a_module_is_identified_by_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it knows files by seconds and sizes
    file = tmp_path / "losses_beside.py"
    file.write_text(HEADER + "SCALE = 1\n" + LOSS)
    module = importlib.import_module("losses_beside")
    try:
        first = open_suite(SUITE, plugins=[module.Distance])
        of_file = open_suite({**SUITE, "plugins": [str(file)]}).plan.trials[1]
        assert first.plan.trials[1].id == of_file.id
        # What moves lines and changes no code is no edit.
        file.write_text("# mine\n" + HEADER + "SCALE = 1\n" + LOSS)
        open_suite(SUITE, plugins=[module.Distance])
        for edited, name in (
            (HEADER + "SCALE = 1\n" + LOSS.replace("mse_loss", "smooth_l1_loss"), "Distance.forward"),
            (HEADER + "SCALE = 2\n" + LOSS.replace("mse_loss", "smooth_l1_loss"), "SCALE"),
        ):
            file.write_text(edited)
            with pytest.raises(PluginError) as error:
                open_suite(SUITE, plugins=[module.Distance])
            assert str(error.value) == (
                f"{file}: was edited after it was imported ({name} differs); restart Python, or reload the module "
                "losses_beside and what imports it"
            )
            importlib.invalidate_caches()
            module = importlib.reload(module)
            assert open_suite(SUITE, plugins=[module.Distance]).plan.trials[1].id != of_file.id
    finally:
        del sys.modules["losses_beside"]


def test_nok_two_classes_of_one_name(cell, loss):
    other = cell(LOSS)["Distance"]
    with pytest.raises(SuiteError, match="method 'distance' is offered more than once by __main__; rename one"):
        open_suite(SUITE, plugins=[loss, other])
