"""Real trainings: the same budget for all methods, resumed where it was interrupted."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench import cli
from kdbench.claims import claiming_all
from kdbench.errors import KdbenchError, ResultsError
from kdbench.hookspecs import hookimpl
from kdbench.results import SuiteFolder
from kdbench.run import open_suite, run_suite
from kdbench.tune import Tuned, tune_suite

TRIALS = 5
"""More than a batch, so that results guide the last one."""


class Interrupts:
    """Ends the run after some epochs of students."""

    def __init__(self, after: int) -> None:
        self.left = after

    @hookimpl
    def kdbench_epoch_finished(self, trial: Any) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def tiny(folder: Path, **options: Any) -> Tuned:
    return tune_suite(folder / "tiny.toml", **{"device": "cpu", "output": folder / "runs", "observers": (), **options})


def asked(tuned: Tuned) -> list[tuple[str, list[dict[str, Any]], list[float | None]]]:
    return [
        (row.space.label, [dict(one) for one in row.configurations], [value for value, _ in row.results])
        for row in tuned.rows
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, suite_text: Callable[..., str]) -> Path:
    path = tmp_path_factory.mktemp("tuned")
    (path / "tiny.toml").write_text(suite_text())
    return path


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Tuned:
    return tiny(folder, trials=TRIALS)


def test_each_method_has_the_same_number_of_configurations_and_the_first_is_the_default(tuned: Tuned) -> None:
    found = asked(tuned)
    assert [label for label, _, _ in found] == ["none", "kd"]
    assert [len(configurations) for _, configurations, _ in found] == [TRIALS, TRIALS]
    assert [len(values) for _, _, values in found] == [TRIALS, TRIALS]
    assert found[0][1][0] == {"lr_factor": 1.0}
    assert found[1][1][0] == {"lr_factor": 1.0, "temperature": 4.0, "kd_weight": 0.9}
    for _, configurations, _ in found:
        assert len({json.dumps(one) for one in configurations}) == TRIALS
        assert all(0.25 <= one["lr_factor"] <= 4 for one in configurations)


def test_all_are_trained_as_the_suite_says_and_judged_by_the_last_epoch_on_validation(tuned: Tuned) -> None:
    folder = SuiteFolder(tuned.folder.parent, "tiny-tune")
    trained = {}
    for place in folder:
        record = place.description
        assert record is not None
        assert (record.recipe["epochs"], record.recipe["batch_size"], record.seed) == (2, 32, 0)
        trained[record.label] = place.epochs[-1].validation["top1"], record
    assert len(trained) == 2 * TRIALS
    for row in tuned.rows:
        for number, (configuration, (value, reason)) in enumerate(zip(row.configurations, row.results, strict=True)):
            accuracy, record = trained[f"{row.space.label}#{number:02d}"]
            assert (value, reason) == (accuracy, "")
            settings = {**record.settings, "lr_factor": record.recipe["lr"] / 0.05}
            assert {key: settings[key] for key in configuration} == pytest.approx(configuration)


def test_the_teacher_is_that_of_the_suite(folder: Path, tuned: Tuned) -> None:
    planned = {trial.teacher.key for trial in open_suite(folder / "tiny.toml").plan.trials if trial.seed == 0}
    assert {path.name for path in (folder / "runs" / "_teachers").iterdir()} == planned


@pytest.mark.parametrize("epochs", [16, 17], ids=["after a batch", "within a batch"])
def test_an_interrupted_tuning_resumes_to_the_same_configurations(
    tmp_path: Path, tuned: Tuned, suite_text: Callable[..., str], epochs: int
) -> None:
    (tmp_path / "tiny.toml").write_text(suite_text())
    stopped = tiny(tmp_path, trials=TRIALS, observers=[Interrupts(epochs)])
    assert stopped.interrupted
    assert stopped.stopped_by == signal.SIGINT
    assert stopped.path is None
    # The first batch is known: four configurations of two methods, of two epochs each.
    assert [len(row.results) for row in stopped.rows] == [4, 4]
    resumed = tiny(tmp_path, trials=TRIALS)
    assert asked(resumed) == asked(tuned)
    assert len(list(SuiteFolder(tmp_path / "runs", "tiny-tune"))) == 2 * TRIALS
    assert resumed.path is not None
    before = resumed.path.read_text()
    again = tiny(tmp_path, trials=TRIALS, observers=[Interrupts(1)])
    assert not again.interrupted  # nothing was left to train
    assert asked(again) == asked(tuned)
    assert resumed.path.read_text() == before
    (resumed.folder / "tune.journal").unlink()
    afresh = tiny(tmp_path, trials=TRIALS, observers=[Interrupts(1)])
    assert asked(afresh) == asked(tuned)  # the same questions, whose answers are known


def test_one_process_tunes_a_suite_at_a_time(folder: Path, tuned: Tuned) -> None:
    with claiming_all(folder / "runs", [("tune", "tiny-tune")]), pytest.raises(ResultsError) as error:
        tiny(folder, trials=TRIALS)
    assert str(error.value).startswith(f"{folder / 'runs'}: tiny-tune is in use by process ")


def test_a_larger_budget_continues_and_a_smaller_one_chooses_among_the_first(
    tmp_path: Path, folder: Path, tuned: Tuned
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    more = tiny(tmp_path, trials=TRIALS + 1)
    for (_, configurations, values), (_, first, known) in zip(asked(more), asked(tuned), strict=True):
        assert (configurations[:TRIALS], values[:TRIALS], len(values)) == (first, known, TRIALS + 1)
    fewer = tiny(tmp_path, trials=2)
    assert [len(row.results) for row in fewer.rows] == [2, 2]
    assert [row.chosen_top1 for row in fewer.rows] == [max(values[:2]) for _, _, values in asked(tuned)]


def test_the_tuned_suite_trains_all_seeds_and_its_report_shows_the_tuning(folder: Path, tuned: Tuned) -> None:
    assert tuned.path == folder / "runs" / "tiny-tuned.toml"
    tables = tomllib.loads(tuned.path.read_text())
    assert tables["extends"] == "../tiny.toml"
    for row, method in zip(tuned.rows, tables["methods"], strict=True):
        values = [value for value, _ in row.results]
        best = values.index(max(values))
        assert method == {"name": row.space.label, **row.configurations[best]}
        told = tables["tuning"]["methods"][row.space.label]
        assert (told["default_top1"], told["chosen_top1"], told["trials"]) == (values[0], max(values), TRIALS)
    results = run_suite(
        tuned.path, device="cpu", output=folder / "runs", report_dir=folder / "reports", observers=(), with_report=True
    )
    assert [(trial.label, trial.seed) for trial in results.plan.trials] == [
        ("none", 0), ("none", 1), ("kd", 0), ("kd", 1),
    ]  # fmt: skip
    assert results.missing == []
    assert results.folder.path == folder / "runs" / "tiny"
    page = (folder / "reports" / "tiny-tuned" / "index.html").read_text()
    assert 'id="tuning"' in page
    budget = (
        f"{TRIALS} configurations of each method, the baseline included, were trained on resnet8 → resnet8 with seed 0"
    )
    assert budget in page
    assert f"Methods were tuned with {TRIALS} configurations each, chosen by validation accuracy" in page


def test_a_failing_configuration_counts_and_is_named(tmp_path: Path, monkeypatch, capfd, write) -> None:
    (tmp_path / "fragile.py").write_text(
        "from kdbench.method import Method, Positive, Search\n\n\n"
        "class Fragile(Method):\n"
        '    name = "fragile"\n'
        '    search = {"weight": Search(choices=(1.0, 2.0, 3.0))}\n\n'
        "    def __init__(self, *, weight: Positive = 1.0) -> None:\n"
        "        super().__init__()\n"
        "        self.weight = weight\n\n"
        "    def forward(self, student, teacher, batch):\n"
        "        if self.weight == 2:\n"
        '            raise ValueError("no twos")\n'
        '        factor = float("nan") if self.weight == 3 else 1.0\n'
        '        return {"ce": (batch.cross_entropy(student.logits) * factor, self.weight)}\n'
    )
    write("none", "fragile", more="[tune]\ntrials = 4\nlr_factor = { choices = [1.0] }\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    line = "kdbench tune tiny.toml -p fragile.py --device cpu --tracking-uri none"
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert ended.value.code == 1
    tables = tomllib.loads(Path("runs/tiny-tuned.toml").read_text())
    told = tables["tuning"]["methods"]
    assert (told["none"]["trials"], told["none"]["note"]) == (1, "nothing to tune")
    assert told["none"]["default_top1"] == told["none"]["chosen_top1"]
    # Equal configurations are one trial, and each counts.
    assert told["fragile"]["trials"] == 4
    assert told["fragile"]["chosen"] == {"weight": 1.0}
    assert told["fragile"]["without_result"] > 0
    assert "weight = 2.0: failed: ValueError: no twos" in err
    assert "weight = 3.0: diverged" in err
    assert "nothing to tune" in out
    assert "kdbench run runs/tiny-tuned.toml -p fragile.py" in out


NOK = {
    "tiny.toml: data.validation: tuning needs images to choose by, held out from the training set: set it, as in "
    "validation = 0.1": {"validation": ""},
    "tiny.toml: tune.kd.temperatur: unknown setting; did you mean 'temperature'?": {
        "more": "[tune.kd]\ntemperatur = { low = 1, high = 2 }"
    },
    "tiny.toml: tune.kd.temperature: low must be below high, got low = 3 and high = 1": {
        "more": "[tune.kd]\ntemperature = { low = 3, high = 1 }"
    },
    "tiny.toml: tune.kd.temperature: must be positive, got -1": {
        "more": "[tune.kd]\ntemperature = { low = -1, high = 1 }"
    },
    "tiny.toml: tune.kd.temperature.hihg: unknown key; did you mean 'high'?": {
        "more": "[tune.kd]\ntemperature = { low = 1, high = 2, hihg = 3 }"
    },
    "tiny.toml: tune.kdd: is not a method of this suite; did you mean 'kd'?": {"more": "[tune.kdd]"},
    "tiny.toml: tune.lr_factor: factors must be positive numbers, got -1": {
        "more": "[tune]\nlr_factor = { low = -1, high = 1 }"
    },
    "tiny.toml: tune.pair: 'a:b' is not a pair of this suite; known: resnet8:resnet8": {"more": '[tune]\npair = "a:b"'},
    "tiny.toml: tune.seed: must be one of seeds, 0, 1; got 7": {"more": "[tune]\nseed = 7"},
}


@pytest.mark.parametrize("problem", NOK)
def test_nok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], problem: str) -> None:
    write(**NOK[problem])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdbenchError) as error:
        tune_suite("tiny.toml", trials=2)
    assert str(error.value) == problem
    assert not (tmp_path / "runs").exists()


def test_nok_arguments(write: Callable[..., Path]) -> None:
    path = write()
    for options, problem in (
        ({"trials": 0}, "--trials: must be at least 1, got 0"),
        ({"pair": "a:b"}, "--pair a:b: no pair of suite tiny; known: resnet8:resnet8"),
        ({"seed": 5}, "--seed 5: no seed of suite tiny; its seeds: 0, 1"),
        ({"methods": ["kdd"]}, "--method kdd: no method of suite tiny; did you mean 'kd'?"),
    ):
        with pytest.raises(KdbenchError) as error:
            tune_suite(path, **options)
        assert str(error.value) == problem


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(KdbenchError) as error:
        tune_suite(write())
    assert str(error.value) == "kdbench tune needs optuna: pip install 'kdbench[tune]'"
