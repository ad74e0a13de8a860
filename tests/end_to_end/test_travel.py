"""Results of two runs are merged, reported and resumed; a renamed label costs no result."""

from __future__ import annotations

import csv
import json

import torch
from safetensors.torch import load_file, save_file

from kdbench.results import SuiteFolder
from kdbench.results.merge import merge

SHORT = ["recipe.epochs=1"]


def test_two_runs_are_merged_and_reported_and_nothing_is_trained_again(write_suite, run, kdbench, tmp_path, watch):
    suite = write_suite("none", "kd")
    run(suite, output="one", methods=["none"], overrides=SHORT)
    run(suite, output="two", methods=["kd"], overrides=SHORT)
    # On a CPU, both have trained the same teacher.
    done = kdbench("merge", "one", "two", "--into", "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "copied 2 trials and 1 teacher to all" in done.stdout
    assert "not copied" not in done.stdout

    reported = kdbench("report", "tiny", "--output", "all", "--report-dir", "pages")
    assert reported.returncode == 0, reported.stderr
    with (tmp_path / "pages/tiny--recipe.epochs=1/trials.csv").open() as file:
        rows = [(row["label"], row["status"], row["device"]) for row in csv.DictReader(file)]
    assert rows == [("none", "done", "cpu"), ("kd", "done", "cpu")]
    frame = run(suite, output="all", overrides=SHORT).to_frame()
    assert set(frame.status) == {"done"}
    assert [event for event in watch.heard if event[0] in {"started", "teacher started"}] == []

    again = kdbench("merge", "one", "two", "--into", "all")
    assert (again.returncode, "copied 0 trials and 0 teachers" in again.stdout) == (0, True), again.stderr


def test_another_machine_that_trained_the_same_trial_differently_is_a_conflict(write_suite, run, tmp_path):
    suite = write_suite("none")
    for output in ("one", "two"):
        run(suite, output=output, overrides=SHORT)
    assert merge([tmp_path / "one", tmp_path / "two"], tmp_path / "same").complete
    # As other hardware does, which sums in another order.
    (trial,) = SuiteFolder(tmp_path / "two", "tiny")
    result = trial.recorded
    state = load_file(trial.weights)
    save_file(
        {name: torch.nextafter(t, t + 1) if t.is_floating_point() else t for name, t in state.items()}, trial.weights
    )
    trial.finish(**dict(result))
    (conflict,) = merge([tmp_path / "one", tmp_path / "two"], tmp_path / "all").decisions.conflicts
    assert conflict.differs == ("weights",)


def test_a_renamed_label_trains_nothing_and_is_not_removed(write_suite, run, kdbench, tmp_path, watch):
    suite = write_suite("none", "kd")
    before = {trial.id for trial in run(suite, overrides=SHORT).plan.trials}
    suite.write_text(suite.read_text().replace('name = "kd"', 'name = "kd"\nlabel = "Hinton et al."'))
    shown = kdbench("prune", suite, "--set", *SHORT, "--json")
    assert json.loads(shown.stdout) == {"removed": False, "trials": [], "teachers": [], "bytes": 0, "remarks": []}
    plan = run(suite, overrides=SHORT).plan
    assert [event for event in watch.heard if event[0] in {"started", "teacher started"}] == []
    assert {trial.id for trial in plan.trials} == before
    assert [(trial.label, trial.status) for trial in plan.trials] == [("none", "done"), ("Hinton et al.", "done")]
    removed = kdbench("prune", suite, "--set", *SHORT, "--yes")
    assert removed.stdout.startswith("nothing to remove"), removed.stdout + removed.stderr
    # Other settings are another trial: the old one is removed, the other trials and the teacher stay.
    suite.write_text(suite.read_text() + "temperature = 8.0\n")
    removed = kdbench("prune", suite, "--set", *SHORT, "--yes")
    assert "other settings (temperature)" in removed.stdout
    assert "removed 1 trial and 0 teachers: freed" in removed.stdout
    left = {path.name for path in (tmp_path / "runs/tiny").iterdir() if path.is_dir()}
    assert left == {trial.id for trial in plan.trials if trial.label == "none"}
