from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kdbench.observers.mirror import Mirror, report_files
from kdbench.results import TrialRecord, store_code
from kdbench.status import Status

PARENT = "mlflow.parentRunId"


def mirror_all(run: Any, store: Any, invocation: str = "sync") -> Mirror:
    """What a replay does: a mirror that knows only what the store says, over the whole folder."""
    mirror = Mirror(store, "tiny")
    for folder in run.folder:
        mirror.mirror(folder, folder.description, {}, lambda: mirror.open_parent(invocation, {}))
    mirror.close_parents(report_files(run.folder.path, run.info.report))
    return mirror


def mirror_live(run: Any, store: Any, interrupted: bool = False) -> None:
    """What an observer does until the end of its run, failed trials included."""
    mirror = Mirror(store, "tiny")
    for folder in run.folder:
        mirror.mirror(folder, folder.description, {}, lambda: mirror.open_parent(run.info.invocation, {}))
    mirror.close_parents([], interrupted=interrupted)


def finished_run(pretend: Callable[..., Any], trial: Any) -> tuple[Any, Any]:
    """Two trials, one with a stage before the main one; both done."""
    none, ab = trial("none", epochs=2), trial("ab", epochs=2)
    run = pretend([none, ab])
    run.start()
    for one in (none, ab):
        run.begin(one)
    run.epoch(ab, 1, stage="boundary")
    for epoch in (1, 2):
        run.epoch(none, epoch)
        run.epoch(ab, epoch)
    for one in (none, ab):
        run.finish(one)
    run.end()
    return run, (none, ab)


def train_loss(store: Any, run: Any) -> list[tuple[str, int, float]]:
    return [entry for entry in store.sent[run.id] if entry[0].endswith("train_loss")]


def test_a_finished_trial(pretend: Any, trial: Any, store: Any) -> None:
    run, (none, ab) = finished_run(pretend, trial)
    mirror = mirror_all(run, store)
    assert store.experiments == ["tiny"]
    (child,) = store.of_trial(ab)
    (parent,) = store.parents()
    assert train_loss(store, child) == [
        ("boundary/train_loss", 1, 2.0),
        ("train_loss", 2, 2.0),
        ("train_loss", 3, 1.0),
    ]
    assert child.status == "FINISHED"
    assert store.ended[child.id] == 1767225660000  # 2026-01-01 00:01:00 UTC
    assert child.started == 1767225600000
    assert child.tags[PARENT] == parent.id
    assert child.tags["kdbench.status"] == "done"
    assert child.tags["torch_version"] == "2.11.0"
    assert store.files[child.id] == ["trial.json", "epochs.jsonl", "result.json"]
    assert parent.status == "FINISHED"
    assert store.files[parent.id] == ["plan.json", "report/index.html", "report/plots/curves.svg"]
    assert len(store.of_trial(none)) == 1
    assert (mirror.report.created, mirror.report.completed) == (2, 2)


def test_twice_changes_nothing(pretend: Any, trial: Any, store: Any) -> None:
    run, _ = finished_run(pretend, trial)
    mirror_all(run, store)
    before = len(store.calls)
    again = mirror_all(run, store)
    assert store.calls[before:] == ["experiment", "runs"]
    assert (again.report.unchanged, again.report.completed, again.report.values) == (2, 0, 0)


def test_a_renamed_trial_is_renamed_and_not_sent_again(pretend: Any, trial: Any, store: Any) -> None:
    run, (none, _) = finished_run(pretend, trial)
    mirror_all(run, store)
    sent, uploaded = len(store.logged), {key: list(names) for key, names in store.files.items()}
    renamed = replace(none, label="baseline", teacher=replace(none.teacher, name="big"))
    mirror = Mirror(store, "tiny")
    mirror.mirror(run.folder.trial(none.id), TrialRecord.of(renamed), {}, lambda: mirror.open_parent("sync", {}))
    (child,) = store.of_trial(none)
    assert child.tags["mlflow.runName"] == "baseline big:resnet8 seed 0"
    assert (child.tags["label"], child.tags["pair"]) == ("baseline", "big:resnet8")
    assert (len(store.logged), store.files) == (sent, uploaded)
    assert mirror.report.unchanged == 1


def test_the_code_behind_a_trial_is_kept(pretend: Any, trial: Any, store: Any) -> None:
    run, (none, ab) = finished_run(pretend, trial)
    store_code(run.folder.trial(ab.id).path, {"method/my_loss.py": b"A = 1", "student/nets/wide.py": b"B = 1"})
    mirror_all(run, store)
    records = ["trial.json", "epochs.jsonl", "result.json"]
    assert store.files[store.of_trial(none)[0].id] == records
    assert store.files[store.of_trial(ab)[0].id] == [
        *records,
        "source/method/my_loss.py",
        "source/student/nets/wide.py",
    ]


@pytest.mark.parametrize("answer_lost", [False, True])
def test_whenever_the_store_fails_a_replay_completes_it(
    pretend: Any, trial: Any, new_store: Any, server_gone: type[Exception], answer_lost: bool
) -> None:
    run, trials = finished_run(pretend, trial)
    undisturbed = new_store()
    mirror_all(run, undisturbed)
    for call in range(len(undisturbed.calls)):
        store = new_store()
        store.fails_at, store.answer_lost = call, answer_lost
        with pytest.raises(server_gone):
            mirror_all(run, store)
        store.fails_at = None
        mirror_all(run, store)
        assert len(store.logged) == len(undisturbed.logged)
        for one in trials:
            (expected,), (found,) = undisturbed.of_trial(one), store.of_trial(one)
            assert sorted(store.sent[found.id]) == sorted(undisturbed.sent[expected.id])
            assert found.parameters == expected.parameters
            assert found.tags.keys() == expected.tags.keys()
            assert found.status == "FINISHED"
            assert set(store.files[found.id]) == set(undisturbed.files[expected.id])
        (parent,) = store.parents()
        assert parent.status == "FINISHED"
        assert set(store.files[parent.id]) == set(undisturbed.files[undisturbed.parents()[0].id])


def test_epoch_by_epoch_sends_each_once(pretend: Any, trial: Any, store: Any) -> None:
    kd = trial("kd", epochs=3)
    run = pretend([kd])
    mirror = Mirror(store, "tiny")

    def look() -> None:
        mirror.mirror(run.folder.trial(kd.id), TrialRecord.of(kd), {}, lambda: mirror.open_parent("now", {}))

    run.begin(kd)
    look()
    for epoch in (1, 2, 3):
        run.epoch(kd, epoch)
        before = store.calls.count("log")
        look()
        look()
        assert store.calls.count("log") == before + 1
    run.finish(kd)
    look()
    (child,) = store.of_trial(kd)
    assert train_loss(store, child) == [
        ("train_loss", 1, 2.0),
        ("train_loss", 2, 1.0),
        ("train_loss", 3, 2 / 3),
    ]
    assert len(store.sent[child.id]) == len(set(store.sent[child.id]))
    assert child.status == "FINISHED"


def test_going_on_from_a_checkpoint_continues_the_run_under_the_new_parent(
    pretend: Any, trial: Any, store: Any
) -> None:
    kd = trial("kd", epochs=3)
    run = pretend([kd])
    run.begin(kd)
    run.epoch(kd, 1)
    run.epoch(kd, 2)
    mirror_all(run, store, "killed")
    (child,) = store.of_trial(kd)
    assert child.status == "RUNNING"
    run.begin(kd, kept=1)
    mirror_all(run, store, "second")
    # The repeated epoch takes another time, which does not make it another training.
    run.epoch(kd, 2, seconds=7.0)
    run.epoch(kd, 3)
    run.finish(kd)
    mirror_all(run, store, "second")
    (child,) = store.of_trial(kd)
    killed, second = store.parents()
    assert train_loss(store, child) == [
        ("train_loss", 1, 2.0),
        ("train_loss", 2, 1.0),
        ("train_loss", 3, 2 / 3),
    ]
    assert child.tags[PARENT] == second.id
    assert (child.status, killed.status, second.status) == ("FINISHED", "KILLED", "FINISHED")


def test_a_retrained_trial_supersedes_the_old_run(pretend: Any, trial: Any, store: Any) -> None:
    kd = trial("kd", epochs=1)
    run = pretend([kd])
    run.begin(kd)
    run.epoch(kd, 1)
    run.finish(kd)
    mirror_all(run, store)
    run.begin(kd, fresh=True)
    run.epoch(kd, 1)
    run.finish(kd, finished="2026-01-02T00:00:00+00:00")
    mirror = mirror_all(run, store)
    old, new = store.of_trial(kd)
    assert old.tags["kdbench.superseded"] == "true"
    assert (old.status, new.status) == ("FINISHED", "FINISHED")
    assert "kdbench.superseded" not in new.tags
    assert train_loss(store, new) == [("train_loss", 1, 2.0)]
    assert mirror.report.superseded == 1


@pytest.mark.parametrize("anew", [{"train_loss": 1.25}, {"terms": {"ce": 1.5}}])
def test_an_unfinished_run_with_other_values_is_superseded(
    pretend: Any, trial: Any, store: Any, anew: dict[str, Any]
) -> None:
    kd = trial("kd", epochs=1)
    run = pretend([kd])
    run.begin(kd)
    run.epoch(kd, 1)
    mirror_all(run, store)
    run.begin(kd, fresh=True)
    run.epoch(kd, 1, **anew)
    run.finish(kd)
    mirror_all(run, store)
    old, new = store.of_trial(kd)
    assert old.tags["kdbench.superseded"] == "true"
    assert old.status == "KILLED"
    expected = [("train_loss", 1, anew.get("train_loss", 2.0))]
    assert train_loss(store, new) == expected


def test_two_runs_of_one_result_leave_one(pretend: Any, trial: Any, store: Any) -> None:
    kd = trial("kd", epochs=1)
    run = pretend([kd])
    run.begin(kd)
    run.epoch(kd, 1)
    run.finish(kd)
    late = Mirror(store, "tiny")
    mirror_all(run, store)
    late.mirror(run.folder.trial(kd.id), TrialRecord.of(kd), {}, lambda: late.open_parent("late", {}))
    mirror_all(run, store)
    first, second = store.of_trial(kd)
    assert "kdbench.superseded" not in first.tags
    assert second.tags["kdbench.superseded"] == "true"


def test_a_failure_is_logged_and_removed_after_success(pretend: Any, trial: Any, store: Any) -> None:
    kd = trial("kd", epochs=1)
    run = pretend([kd])
    run.begin(kd)
    run.fail(kd, "no such tap")
    mirror_all(run, store)
    (child,) = store.of_trial(kd)
    assert (child.status, child.tags["kdbench.error"]) == ("FAILED", "no such tap")
    assert child.tags["kdbench.status"] == "failed"
    run.begin(kd)
    run.epoch(kd, 1)
    mirror_all(run, store)
    assert store.of_trial(kd)[0].status == "RUNNING"
    run.finish(kd)
    mirror_all(run, store)
    (child,) = store.of_trial(kd)
    assert (child.status, child.tags["kdbench.error"], child.tags["kdbench.status"]) == (
        "FINISHED",
        "",
        "done",
    )


def test_divergence_is_a_failed_run_with_a_tag(pretend: Any, trial: Any, store: Any) -> None:
    kd = trial("kd", epochs=5)
    run = pretend([kd])
    run.begin(kd)
    run.epoch(kd, 1)
    run.epoch(kd, 2, train_loss=math.inf, metrics={"nll": math.nan})
    run.finish(kd, status=Status.DIVERGED, epoch=2)
    mirror_all(run, store)
    (child,) = store.of_trial(kd)
    assert train_loss(store, child) == [("train_loss", 1, 2.0)]
    assert child.tags["not_finite.train_loss"] == "inf at step 2"
    assert child.tags["not_finite.test/nll"] == "nan at step 2"
    assert (child.status, child.tags["kdbench.status"]) == ("FAILED", "diverged")
    assert all(math.isfinite(value) for _, _, value in store.sent[child.id])


def end_with(pretend: Any, trial: Any, **outcomes: str) -> Any:
    """A run whose trials, named by their labels, are ``done``, ``diverged`` or ``failed``."""
    trials = [trial(label, epochs=1) for label in outcomes]
    run = pretend(trials)
    for one, outcome in zip(trials, outcomes.values(), strict=True):
        run.begin(one)
        if outcome == "failed":
            run.fail(one)
        else:
            run.epoch(one, 1)
            run.finish(one, status=Status(outcome))
    return run


@pytest.mark.parametrize(
    ("outcomes", "status", "tags"),
    [
        ({"none": "done", "kd": "done"}, "FINISHED", {}),
        ({"none": "done", "kd": "failed", "rkd": "failed"}, "FINISHED", {"kdbench.trials_failed": "2"}),
        ({"none": "done", "kd": "diverged"}, "FINISHED", {"kdbench.trials_diverged": "1"}),
        ({"none": "failed", "kd": "failed"}, "FAILED", {"kdbench.trials_failed": "2"}),
        (
            {"none": "failed", "kd": "diverged"},
            "FAILED",
            {"kdbench.trials_failed": "1", "kdbench.trials_diverged": "1"},
        ),
    ],
)
def test_a_parent_shows_how_its_trials_ended(
    pretend: Any, trial: Any, store: Any, outcomes: dict[str, str], status: str, tags: dict[str, str]
) -> None:
    mirror_live(end_with(pretend, trial, **outcomes), store)
    (parent,) = store.parents()
    assert parent.status == status
    assert {name: value for name, value in parent.tags.items() if name.startswith("kdbench.trials_")} == tags


def test_an_interrupted_parent_is_killed_whatever_its_trials_did(pretend: Any, trial: Any, store: Any) -> None:
    mirror_live(end_with(pretend, trial, none="failed"), store, interrupted=True)
    assert [parent.status for parent in store.parents()] == ["KILLED"]


def test_a_parent_is_named_after_suite_and_time(pretend: Any, trial: Any, store: Any) -> None:
    run = end_with(pretend, trial, none="done")
    mirror_all(run, store, "20260102T030405Z-abcdef")
    (parent,) = store.parents()
    assert parent.tags["mlflow.runName"] == "tiny 2026-01-02 03:04:05 UTC"
    assert parent.tags["kdbench.invocation"] == "20260102T030405Z-abcdef"


def test_the_experiment_is_one_of_trainings_and_says_what_it_asks(store: Any) -> None:
    Mirror(store, "tiny", "Does it log?")
    assert store.experiment_tags == {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": "Does it log?",
    }


def test_a_parent_with_a_trial_in_training_stays_open(pretend: Any, trial: Any, store: Any) -> None:
    kd = trial("kd")
    run = pretend([kd])
    run.begin(kd)
    run.epoch(kd, 1)
    mirror_all(run, store)
    (parent,) = store.parents()
    assert parent.status == "RUNNING"
    assert store.files[parent.id] == []


def test_timestamps_are_training_time(pretend: Any, trial: Any, store: Any, monkeypatch: Any) -> None:
    run, (none, _) = finished_run(pretend, trial)
    stamps: dict[tuple[str, int], int] = {}
    log = store.log

    def noting(identifier: str, values: Any, parameters: Any, tags: Any) -> None:
        if store.logged[identifier].tags.get("kdbench.trial_id") == none.id:
            stamps.update({(value.name, value.step): value.timestamp for value in values})
        log(identifier, values, parameters, tags)

    monkeypatch.setattr(store, "log", noting)
    mirror_all(run, store)
    start = 1767225600000
    assert stamps["train_loss", 1] == start + 2000
    assert stamps["train_loss", 2] == stamps["result/test/top1", 2] == start + 4000


def test_a_clock_that_was_set_back_makes_no_negative_duration(pretend: Any, trial: Any, store: Any) -> None:
    one = trial("none")
    run = pretend([one])
    run.start()
    run.begin(one)
    run.epoch(one, 1)
    run.finish(one, started="2026-01-01T01:00:00+00:00", finished="2026-01-01T00:01:00+00:00")
    run.end()
    mirror_all(run, store)
    (child,) = store.of_trial(one)
    assert store.ended[child.id] == child.started
    assert mirror_all(run, store).report.unchanged == 1


def test_half_written_files_of_a_report_are_not_sent(pretend: Any, trial: Any) -> None:
    run, _ = finished_run(pretend, trial)
    (run.info.report / ".index.html.host.1.tmp").write_text("<p>")
    names = [path.name for path, _ in report_files(run.folder.path, run.info.report)]
    assert names == ["plan.json", "index.html", "curves.svg"]
