"""The README's own loss and suite, taken from its text, run as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kdbench
from kdbench.hookspecs import hookimpl
from kdbench.run import open_suite, run_suite
from kdbench.suite.load import load, read

README = Path(__file__).parents[1] / "README.md"


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[number]


def test_the_loss_in_twenty_lines_runs_in_the_suite_that_adds_it(tmp_path):
    loss = block("python")
    assert len([line for line in loss.splitlines() if line.strip()]) <= 20
    (tmp_path / "my_loss.py").write_text(loss)
    (tmp_path / "mine.toml").write_text(block("toml"))
    small = [
        "recipe.epochs=1",
        "data.train_limit=128",
        "data.test_limit=50",
        "seeds=[0]",
        "teachers.resnet20.model=resnet8",
    ]
    seen = []

    class Watch:
        @hookimpl
        def kdbench_epoch_finished(self, trial):
            seen.append(trial.label)

    where = {"output": tmp_path / "runs", "report_dir": tmp_path / "reports", "observers": [Watch()], "device": "cpu"}
    pair = {"pairs": ["resnet20:resnet8"], "overrides": small}
    run_suite("digits", methods=["none", "kd"], **pair, **where)
    assert set(seen) == {"none", "kd"}
    seen.clear()
    # The suite that extends it shares its results: only the new loss is trained.
    results = run_suite(tmp_path / "mine.toml", methods=["none", "kd", "cosine-kd"], **pair, **where)
    assert seen == ["cosine-kd"]
    assert {"none", "kd", "cosine-kd"} <= set(results.to_frame().query("status == 'done'").method)


def test_the_suite_and_class_of_a_notebook_run(tmp_path, cell, monkeypatch):
    small = {
        "recipe": {"epochs": 1},
        "data": {"train_limit": 128, "test_limit": 50},
        "seeds": [0],
        "teachers": {"resnet20": {"model": "resnet8"}},
    }

    def run_small(suite, **options):
        return run_suite({**suite, **small}, device="cpu", tracking_uri="none", observers=[], **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kdbench, "run_suite", run_small, raising=False)
    cell(block("python"))
    results = cell(block("python", 1))["results"]
    assert set(results.to_frame().query("status == 'done'").method) == {"none", "kd", "cosine-kd"}
    assert (tmp_path / "runs/notebook/plan.json").is_file()
    assert (tmp_path / "reports/notebook/index.html").is_file()


def test_the_suite_that_the_readme_explains_is_a_valid_one(tmp_path):
    path = tmp_path / "explained.toml"
    path.write_text(block("toml", 1))
    tables = read(path)
    assert load(path, tables).name == "digits"
    with pytest.raises(Exception, match=r"plugin file .*my_loss\.py: not found"):
        open_suite(path)


def test_every_command_that_the_readme_lists_exists():
    from typer.main import get_command

    from kdbench.cli import app

    commands = get_command(app).commands
    listed = set(re.findall(r"^\| `kdbench ([a-z-]+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert listed
    assert listed == set(commands)
