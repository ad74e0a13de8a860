from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from kdbench.errors import ResultsError
from kdbench.report.frame import COLUMNS, method_order, pair_order, read_curves, read_trials
from kdbench.results import SuiteFolder, TrialFolder, write_json
from kdbench.suite.filters import Filters


def one(trials: pd.DataFrame, label: str, seed: int, pair: str = "resnet20:resnet8") -> pd.Series:
    rows = trials[(trials["label"] == label) & (trials["seed"] == seed) & (trials["pair"] == pair)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_one_row_a_trial_in_the_plans_order(study: SuiteFolder) -> None:
    trials = read_trials(study)
    assert tuple(trials.columns) == COLUMNS
    assert len(trials) == 8 * 3 + 2 * 3
    assert pair_order(trials) == ["resnet20:resnet8", "resnet20:resnet14"]
    assert method_order(trials) == ["none", "kd", "vid", "rkd", "pkt", "ab", "ft", "deit"]


def test_a_done_trial(study: SuiteFolder) -> None:
    row = one(read_trials(study), "kd", 2)
    assert row["status"] == "done"
    assert row["reason"] == ""
    assert (row["top1"], row["top5"], row["agreement"]) == (73.5, 77.5, 72.5)
    assert (row["best_on_test_top1"], row["best_on_test_epoch"]) == (73.5, 2)
    assert (row["teacher_top1"], row["teacher_sha256"]) == (80.0, "a" * 64)
    assert (row["seconds"], row["teacher_seconds"], row["student_parameters"]) == (12.0, 1.0, 1000)
    assert row["peak_memory_bytes"] is pd.NA
    assert (row["plugin"], row["plugin_version"], row["settings"]) == ("kdbench", "0.1.0", '{"weight": 1.0}')
    assert (row["device"], row["precision"], row["git_commit"]) == ("cpu", "float32", "0123abc")


def test_other_states_say_why(study: SuiteFolder) -> None:
    trials = read_trials(study)
    found = {
        (label, seed): (one(trials, label, seed)["status"], one(trials, label, seed)["reason"])
        for label, seed in [("pkt", 1), ("ab", 0), ("ft", 2), ("deit", 2)]
    }
    assert found == {
        ("pkt", 1): ("diverged", "the loss was NaN or infinite (epoch 1)"),
        ("ab", 0): ("skipped", "ab needs pre-activation taps; resnet8 has none"),
        ("ft", 2): ("failed", "RuntimeError: out of memory | twice (epoch 2)"),
        ("deit", 2): ("pending", ""),
    }


def test_a_diverged_trial_has_no_accuracy(study: SuiteFolder) -> None:
    row = one(read_trials(study), "pkt", 1)
    assert math.isnan(row["top1"])
    assert math.isnan(row["nll"])
    assert row["epoch"] == 1


def test_where_it_diverged_and_failed_before_the_main_stage(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.diverged("resnet20", "resnet8", "ab", 0, epoch=4, stage="boundary")
    assert read_trials(suite.write())["reason"][0] == "the loss was NaN or infinite (stage boundary, epoch 4)"


def test_a_trial_under_way_tells_how_far_it_is(study: SuiteFolder) -> None:
    waiting = one(read_trials(study), "deit", 2)["id"]
    folder = study.path / waiting
    folder.mkdir()
    record = '{"epoch": 1, "stage": "main", "train_loss": 1.5, "seconds": 2.0}\n'
    folder.joinpath("epochs.jsonl").write_text(record + record[:20])
    row = one(read_trials(study), "deit", 2)
    assert (row["status"], row["reason"]) == ("pending", "1 epoch so far")


def test_a_truncated_result_is_no_result(study: SuiteFolder) -> None:
    done = one(read_trials(study), "kd", 0)["id"]
    study.path.joinpath(done, "result.json").write_text('{"status": "done", "top1": 7')
    row = one(read_trials(study), "kd", 0)
    assert (row["status"], row["reason"]) == ("pending", "damaged: result.json is truncated or not a JSON object")


def test_infinite_metrics_are_read(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "kd", 0, 70.0, metrics={"nll": math.inf, "kl_to_teacher": math.nan})
    row = one(read_trials(suite.write()), "kd", 0)
    assert row["nll"] == math.inf
    assert math.isnan(row["kl_to_teacher"])


def test_results_of_another_teacher_are_stale(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0, sha256="b" * 64)
    suite.done("resnet20", "resnet8", "none", 0, 70.0, sha256="c" * 64)
    suite.done("resnet20", "resnet8", "kd", 0, 72.0)
    suite.diverged("resnet20", "resnet8", "vid", 0, epoch=2, sha256="c" * 64)
    trials = read_trials(suite.write())
    assert list(trials["status"]) == ["stale", "done", "stale"]
    assert trials["reason"][0] == "trained with other teacher weights (cccccccc) than the current ones (bbbbbbbb)"


def test_without_a_record_of_the_teacher_the_newest_weights_count(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0, sha256="b" * 64)
    suite.done("resnet20", "resnet8", "none", 1, 71.0, sha256="c" * 64)
    folder = suite.write()
    (folder.teacher(suite.teachers["resnet20"][0].key).path / "result.json").unlink()
    trials = read_trials(folder)
    assert list(trials["status"]) == ["stale", "done"]


def with_teachers_of_their_seeds(suite: Any) -> SuiteFolder:
    for seed in (0, 1):
        suite.teacher("resnet20", 80.0 + seed, sha256="bc"[seed] * 64, seed=seed)
        suite.done("resnet20", "resnet8", "none", seed, 70.0 + seed)
    suite.done("resnet20", "resnet8", "kd", 1, 72.0, sha256="d" * 64)
    folder: SuiteFolder = suite.write()
    return folder


def test_students_of_each_seed_may_have_another_teacher(runs: Callable[..., Any]) -> None:
    trials = read_trials(with_teachers_of_their_seeds(runs()))
    assert list(zip(trials["label"], trials["seed"], trials["status"], trials["teacher_top1"], strict=True)) == [
        ("none", 0, "done", 80.0),
        ("none", 1, "done", 81.0),
        ("kd", 1, "stale", 81.0),
    ]
    assert trials["reason"][2] == "trained with other teacher weights (dddddddd) than the current ones (cccccccc)"


def test_without_a_plan_teachers_are_known_by_their_seeds(runs: Callable[..., Any]) -> None:
    suite = runs()
    folder = with_teachers_of_their_seeds(suite)
    (folder.path / "plan.json").unlink()
    found = {(trial.label, trial.seed): trial.status for trial in read_trials(folder).itertuples()}
    assert found == {("none", 0): "done", ("none", 1): "done", ("kd", 1): "stale"}
    # The same seed with another recipe is another version of the teacher: the newer one counts.
    suite.teacher("resnet20", 85.0, sha256="e" * 64, epochs=9, seed=1)
    suite.done("resnet20", "resnet8", "kd", 1, 73.0, finished="2026-01-01T00:00:00+00:00")
    found = {(trial.label, trial.seed, trial.top1): trial.status for trial in read_trials(folder).itertuples()}
    assert found == {
        ("none", 0, 70.0): "done", ("none", 1, 71.0): "stale", ("kd", 1, 72.0): "stale", ("kd", 1, 73.0): "done",
    }  # fmt: skip


def test_another_pair_may_have_another_teacher(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("timm:resnet18", 80.0, sha256="b" * 64)
    suite.teacher("resnet20", 80.0, sha256="c" * 64)
    suite.done("timm:resnet18", "resnet8", "kd", 0, 70.0)
    suite.done("resnet20", "resnet8", "kd", 0, 71.0)
    assert list(read_trials(suite.write())["status"]) == ["done", "done"]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (Filters(methods=["k*"]), 6),
        (Filters(methods=["vid", "rkd"]), 6),
        (Filters(pairs=["resnet20:resnet14"]), 6),
        (Filters(seeds=[1]), 10),
        (Filters(methods=["kd"], pairs=["resnet20:resnet14"], seeds=[0, 2]), 2),
    ],
)
def test_filters(study: SuiteFolder, filters: Filters, count: int) -> None:
    assert len(read_trials(study, filters)) == count


def test_methods_are_found_by_label_and_by_name(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "hot", 0, 70.0, method="kd")
    folder = suite.write()
    assert len(read_trials(folder, Filters(methods=["kd"]))) == 1
    assert len(read_trials(folder, Filters(methods=["h*"]))) == 1


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(methods=["vdi"]), "--method vdi: no trial of this suite; did you mean 'vid'?"),
        (
            Filters(pairs=["resnet20:resnet15"]),
            "--pair resnet20:resnet15: no trial of this suite; did you mean 'resnet20:resnet14'?",
        ),
        (Filters(methods=["kd"], seeds=[9]), "no trial passes --method kd --seed 9; its seeds: [0, 1, 2]"),
    ],
)
def test_filters_that_nothing_passes(study: SuiteFolder, filters: Filters, message: str) -> None:
    with pytest.raises(ResultsError) as caught:
        read_trials(study, filters)
    assert str(caught.value) == f"{study.path}: {message}"


def test_nothing_was_run(tmp_path: Any) -> None:
    with pytest.raises(ResultsError, match=r"nothing to report: no plan\.json and no trial in it; start with"):
        read_trials(SuiteFolder(tmp_path, "digits"))


def test_another_protocol_is_refused(study: SuiteFolder) -> None:
    plan = study.path / "plan.json"
    write_json(plan, study.plan.model_copy(update={"protocol": 0}).to_json())
    with pytest.raises(ResultsError, match="written under protocol 0"):
        read_trials(study)


def test_a_lost_plan_leaves_the_results(study: SuiteFolder) -> None:
    (study.path / "plan.json").unlink()
    trials = read_trials(study)
    assert set(trials["status"]) == {"done", "diverged", "failed"}
    assert one(trials, "vid", 1)["top1"] == 72.3


def test_a_lost_plan_does_not_mix_versions_of_a_trial(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    first = suite.done("resnet20", "resnet8", "kd", 0, 70.0, finished="2025-01-01T00:00:00+00:00")
    folder = suite.write()
    folder.path.joinpath(first.id).rename(folder.path / "older")
    older = folder.trial("older")
    found = TrialFolder(older.path)
    trial, result = found.description, found.recorded
    older.begin(trial.model_copy(update={"id": "older"}))
    older.finish(**{**dict(result), "id": "older"})
    suite.done("resnet20", "resnet8", "kd", 0, 72.0, finished="2025-02-01T00:00:00+00:00")
    folder.path.joinpath("plan.json").unlink()
    trials = read_trials(folder)
    assert dict(zip(trials["id"], trials["status"], strict=True)) == {"older": "stale", first.id: "done"}


def test_curves(study: SuiteFolder) -> None:
    trials = read_trials(study, Filters(methods=["vid"]))
    curves = read_curves(study, trials)
    assert len(curves) == 9
    first = curves[curves["seed"] == 0]
    assert list(first["top1"]) == pytest.approx([52.1, 67.1, 72.1])
    assert list(first["term_ce"]) == [1.0, 1 / 2, 1 / 3]
    assert set(curves["stage"]) == {"main"}


def test_a_column_of_some_epochs_is_missing_in_the_others(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0, terms=("ce",))
    suite.plan_trial("resnet20", "resnet8", "none", 1)
    suite.done("resnet20", "resnet8", "ft", 0, 71.0, terms=("ce", "factors"), stages=("paraphraser",))
    folder = suite.write()
    curves = read_curves(folder, read_trials(folder))
    assert list(curves["label"]) == ["none"] * 3 + ["ft"] * 5
    assert list(curves["epoch"]) == [1, 2, 3, 1, 2, 1, 2, 3]
    assert list(curves["stage"]) == ["main"] * 3 + ["paraphraser"] * 2 + ["main"] * 3
    nan = float("nan")
    expected = {
        "top1": [50, 65, 70, nan, nan, 51, 66, 71],
        "term_ce": [1, 1 / 2, 1 / 3, nan, nan, 1, 1 / 2, 1 / 3],
        "term_paraphraser": [nan, nan, nan, 1, 1 / 2, nan, nan, nan],
        "term_factors": [nan] * 5 + [2, 1, 2 / 3],
    }
    for name, values in expected.items():
        assert list(curves[name]) == pytest.approx(values, nan_ok=True), name


def test_curves_of_nothing(study: SuiteFolder) -> None:
    curves = read_curves(study, read_trials(study, Filters(methods=["ab"])))
    assert curves.empty
    assert {"epoch", "stage", "top1"} <= set(curves.columns)
