"""The whole way of the data, in this process."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench import run_suite
from kdbench.engine import checkpoint
from kdbench.errors import DataError, KdbenchError, ResultsError, SuiteError
from kdbench.results import SuiteFolder, TeacherFolder, stored_code, write_json
from kdbench.results.files import read_json
from kdbench.results.state import with_results
from kdbench.status import Status

SINGLE = ["seeds=[0, 1]", "teacher_seeds=single"]
"""Two cohorts that have one teacher."""


def students(tmp_path, output="runs"):
    """Each trial's weights by its id."""
    folders = (tmp_path / output / "tiny").glob("*/student.safetensors")
    return {path.parent.name: load_file(path) for path in folders}


def replace_teacher(tmp_path):
    """Other weights, as training on another machine might give."""
    (weights,) = (tmp_path / "runs/_teachers").glob("*/teacher.safetensors")
    state = load_file(weights)
    save_file({key: value + 0.01 if value.is_floating_point() else value for key, value in state.items()}, weights)
    folder = TeacherFolder(weights.parent)
    folder.finish(**{**dict(folder.recorded), "sha256": None})


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_suite_is_trained_recorded_and_reported_and_not_trained_again(write_suite, run, watch, tmp_path):
    suite = write_suite("none", "kd", more='[[methods]]\nname = "ab"\nboundary_epochs = 2\n')
    results = run(suite)
    assert [trial.status for trial in results.plan.trials] == ["done"] * 3
    assert watch.heard[:3] == [("suite started",), ("teacher started", "resnet8"), ("teacher finished", "resnet8")]
    assert watch.heard[-1] == ("suite finished", "False")
    assert watch.epochs.count(("ab", 1)) == 2  # of the boundary stage and of the main one
    assert watch.results["ab"].cost.extra_epochs == 2

    for trial in results.plan.trials:
        folder = results.folder.trial(trial.id)
        # The source of our own methods is kept only where they are not installed, or editable.
        assert {p.name for p in folder.path.iterdir()} - {"source"} == {
            "trial.json", "epochs.jsonl", "result.json", "student.safetensors", "correct.npy"
        }  # fmt: skip
        main = [record for record in folder.epochs if record.in_main]
        assert [record.epoch for record in main] == [1, 2, 3]
        assert folder.result.top1 == main[-1].top1
        assert folder.result.teacher.sha256 == watch.results["kd"].teacher.sha256
    kd = next(trial for trial in results.plan.trials if trial.label == "kd")
    terms = results.folder.trial(kd.id).epochs[0].terms
    assert set(terms) == {"ce", "kd"}

    table = pd.read_csv(tmp_path / "reports/tiny/leaderboard.csv")
    wanted = "teacher student method n diverged top1_mean top1_std gain_over_none seconds"
    assert set(wanted.split()) <= set(table.columns)
    assert dict(zip(table.method, table.top1_mean, strict=True)) == pytest.approx(
        {label: result.top1 for label, result in watch.results.items()}, rel=1e-4
    )
    frame = results.to_frame()
    assert sorted(frame.method) == ["ab", "kd", "none"]
    assert repr(results).startswith("<Results of tiny: 3 done; report: ")

    page = tmp_path / "reports/tiny/index.html"
    written = page.stat().st_mtime_ns
    run(suite)
    assert watch.heard == [("suite started",), ("suite finished", "False")]
    assert watch.epochs == []
    assert page.stat().st_mtime_ns == written

    asked = run(suite, fresh=True, methods=["k*"])
    assert list(asked.to_frame().method) == ["kd"]
    chosen = tmp_path / "reports/tiny--method=k_-"
    assert repr(asked).startswith(f"<Results of tiny: 1 done; report: {chosen}")
    assert {label for label, _ in watch.epochs} == {"kd"}
    assert page.stat().st_mtime_ns == written


def test_through_the_api_a_method_alone_is_bit_identical_to_itself_in_a_cohort(write_suite, run, tmp_path):
    suite = write_suite("none", "vid", "ft", more="paraphraser_epochs = 1\n")
    run(suite, "together")
    for method in ("none", "vid", "ft"):
        run(suite, "alone", methods=[method])
    together, alone = students(tmp_path, "together"), students(tmp_path, "alone")
    assert len(together) == 3
    assert together.keys() == alone.keys()
    assert all(equal(together[name], alone[name]) for name in together)


def test_seeds_and_methods_give_different_students(write_suite, run, tmp_path):
    run(write_suite("none", "kd"), overrides=["seeds=[0, 1]"])
    found = list(students(tmp_path).values())
    assert len(found) == 4
    assert not any(equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_a_pair_that_a_method_cannot_read_is_skipped_with_the_reason(write_suite, run, watch, tmp_path):
    suite = write_suite("none", "ab")
    text = suite.read_text().replace('student = "resnet8"', 'student = "deit_micro"')
    suite.write_text(text)
    run(suite)
    reason = "ab needs pre-activation taps; deit_micro has none"
    assert ("skipped", "ab", reason) in watch.heard
    assert reason in (tmp_path / "reports/tiny/index.html").read_text()
    assert reason in (tmp_path / "reports/tiny/leaderboard.md").read_text()


FAULTY = """
import torch
from kdbench.method import Method

class FailsInForward(Method):
    name = "fails-in-forward"
    def forward(self, student, teacher, batch):
        raise ValueError("no good")

class FailsInSetup(Method):
    name = "fails-in-setup"
    def setup(self, student, teacher, data):
        if data.labels is not None:
            raise ValueError("not set up")
    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}

class Diverges(Method):
    name = "diverges"
    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits) / (batch.epoch < 1), 1.0)}
"""


def test_plugins_that_fail_or_diverge_cost_no_other_trial(write_suite, run, watch, tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    methods = ("none", "fails-in-forward", "fails-in-setup", "diverges")
    suite = write_suite(*methods, plugins=("faulty.py",))
    results = run(suite)
    assert {trial.label: trial.status for trial in results.plan.trials} == {
        "none": "done",
        "fails-in-forward": "failed",
        "fails-in-setup": "failed",
        "diverges": "diverged",
    }
    assert watch.errors["fails-in-forward"].message == "no good"
    assert watch.errors["fails-in-setup"].message == "not set up"
    assert (watch.results["diverges"].status, watch.results["diverges"].epoch) == (Status.DIVERGED, 2)
    assert [trial.label for trial in results.failed] == ["fails-in-forward", "fails-in-setup"]
    table = pd.read_csv(tmp_path / "reports/tiny/leaderboard.csv").set_index("method")
    assert table.loc["diverges", "diverged"] == 1
    assert pd.isna(table.loc["diverges", "top1_mean"])

    # The diverged one is finished; those that failed are tried again.
    run(suite)
    assert {entry[1] for entry in watch.heard if entry[0] in {"started", "failed"}} == {
        "fails-in-forward",
        "fails-in-setup",
    }
    # An edited loss is a new trial.
    (tmp_path / "faulty.py").write_text(
        FAULTY.replace('raise ValueError("no good")', 'return {"zero": (student.logits.sum() * 0, 1.0)}')
    )
    results = run(suite, methods=["fails-in-forward"])
    assert watch.results["fails-in-forward"].done


def test_trials_with_a_damaged_result_or_checkpoint_are_retrained(write_suite, run, watch, tmp_path):
    suite = write_suite("none", "kd")
    first = run(suite)
    before = students(tmp_path)
    none, kd = (first.folder.trial(trial.id) for trial in first.plan.trials)
    text = (none.path / "result.json").read_text()
    (none.path / "result.json").write_text(text[: len(text) // 2])
    none.checkpoint.write_bytes(b"PK\x03\x04 half a checkpoint")
    kd.weights.unlink()
    planned = with_results(first.plan, first.folder)
    assert [(trial.status, trial.reason) for trial in planned.trials] == [
        ("pending", "damaged: result.json is truncated or not a JSON object"),
        ("pending", "damaged: student.safetensors is missing"),
    ]
    run(suite)
    assert sorted(set(watch.epochs)) == [(label, epoch) for label in ("kd", "none") for epoch in (1, 2, 3)]
    after = students(tmp_path)
    assert all(equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("how", ["truncated", "changed", "changed without a trace"])
def test_a_damaged_teacher_is_trained_again(write_suite, run, watch, tmp_path, how):
    suite = write_suite("none")
    run(suite)
    (weights,) = (tmp_path / "runs/_teachers").glob("*/teacher.safetensors")
    content, before = bytearray(weights.read_bytes()), weights.stat()
    content[-7] ^= 1
    weights.write_bytes(content[:1000] if how == "truncated" else content)
    if how == "changed without a trace":
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    warnings = []
    run(suite, methods=["none"], overrides=SINGLE, warn=warnings.append)
    assert warnings == [
        f"{weights.parent}: damaged: teacher.safetensors does not match its checksum; the teacher will be retrained"
    ]
    assert ("teacher started", "resnet8") in watch.heard
    # Trained to the same bits: the first seed's result still stands.
    assert watch.heard.count(("started", "none")) == 1


def test_a_teachers_checkpoint_that_does_not_fit_is_not_resumed(write_suite, run, watch, tmp_path):
    suite = write_suite("none")
    first = run(suite)
    (weights,) = (tmp_path / "runs/_teachers").glob("*/teacher.safetensors")
    before = weights.read_bytes()
    data = first.folder.teacher(weights.parent.name).result.data.fingerprint
    for made in weights.parent.glob("*.json*"):
        made.unlink()
    state = {"made_with": {"data": data, "precision": "float32"}, "phase_index": 0, "modules": {}}
    checkpoint.save(weights.parent / "checkpoint.pt", weights.parent.name, state)
    run(suite, overrides=SINGLE)
    assert ("teacher started", "resnet8") in watch.heard
    assert weights.read_bytes() == before


def test_results_under_another_teacher_are_never_mixed(write_suite, run, watch, tmp_path):
    suite = write_suite("none", "kd")
    run(suite, methods=["none"])
    before = watch.results["none"].teacher.sha256
    replace_teacher(tmp_path)
    second = run(suite)
    assert {label for label, _ in watch.epochs} == {"none", "kd"}
    made_with = {second.folder.trial(t.id).result.teacher.sha256 for t in second.plan.trials}
    assert len(made_with) == 1
    assert before not in made_with


def test_a_teacher_that_is_not_as_expected_stops_the_run_before_it_spends(write_suite, run, watch):
    suite = write_suite("kd", more="[teachers.resnet8]\nexpected_top1 = 99.9\ntolerance = 0.05\n")
    with pytest.raises(KdbenchError, match=r"^teacher resnet8: reaches \d+\.\d\d % on the test set, the suite"):
        run(suite)
    assert watch.epochs == []
    warnings = []
    run(suite, allow_teacher_mismatch=True, warn=warnings.append)
    assert len(watch.epochs) == 3
    assert len(warnings) == 1


def test_a_teacher_that_diverges_is_trained_once_a_run(write_suite, run, watch):
    results = run(write_suite("none"), overrides=[*SINGLE, "teachers.resnet8.recipe.lr=1e18"], warn=lambda _: None)
    assert [trial.reason for trial in results.failed] == [
        "teacher resnet8 diverged in epoch 1; lower its recipe.lr"
    ] * 2
    assert watch.heard.count(("teacher started", "resnet8")) == 1


def test_given_weights_are_measured_and_used(write_suite, run, watch, tmp_path):
    first = run(write_suite("none"))
    key = first.plan.teachers[0].key
    weights = tmp_path / "runs/_teachers" / key / "teacher.safetensors"
    (tmp_path / "given.safetensors").write_bytes(weights.read_bytes())
    suite = write_suite("kd", more='[teachers.resnet8]\nweights = "given.safetensors"\n')
    second = run(suite, "other")
    trained, given = first.folder.teacher(key).result, watch.results["kd"].teacher
    assert given.sha256 == trained.sha256
    assert given.top1 == trained.top1
    assert second.plan.teachers[0].weights_sha256 is not None
    with pytest.raises(SuiteError, match=r"teachers\.resnet8\.weights: .*missing\.pth: no such file$"):
        run(write_suite("kd", more='[teachers.resnet8]\nweights = "missing.pth"\n'))


def test_a_folder_of_another_protocol_is_refused(write_suite, run, tmp_path):
    suite = write_suite("none")
    run(suite)
    plan = tmp_path / "runs/tiny/plan.json"
    for unchecked in (False, True):
        content = {**read_json(plan), "protocol": 0}
        if unchecked:
            plan.write_text(json.dumps(content))
        else:
            write_json(plan, content)
        with pytest.raises(ResultsError, match=r"runs/tiny: written under protocol 0, this kdbench has protocol \d+"):
            run(suite)


def test_an_observer_that_raises_is_reported_disabled_and_costs_nothing(write_suite, run, watch):
    from kdbench.hookspecs import hookimpl

    class Raises:
        calls = 0

        @hookimpl
        def kdbench_epoch_finished(self, trial):
            self.calls += 1
            raise RuntimeError("observer broke")

    raising, warnings = Raises(), []
    results = run(write_suite("none", "kd"), observers=[raising, watch], warn=warnings.append)
    assert [trial.status for trial in results.plan.trials] == ["done", "done"]
    assert len(watch.epochs) == 6
    assert raising.calls == 3
    assert len(warnings) == 3
    assert warnings[0] == "observer 'Raises' failed in kdbench_epoch_finished: RuntimeError: observer broke"
    assert warnings[2].endswith("; it is disabled for the rest of this run")


def test_filters_that_match_nothing_are_refused(write_suite, run):
    with pytest.raises(SuiteError) as error:
        run(write_suite("none", "kd"), methods=["kdd"], pairs=["resnet8:resnet14"], seeds=[7])
    assert error.value.problems == (
        "--method kdd: no method of suite tiny; did you mean 'kd'?",
        "--pair resnet8:resnet14: no pair of suite tiny; did you mean 'resnet8:resnet8'?",
        "--seed 7: no seed of suite tiny; its seeds: 0",
    )


def test_limits_beyond_the_data_are_refused(write_suite, run):
    with pytest.raises(DataError, match=r"tiny\.toml: data\.train_limit: must be 1 to 1297"):
        run(write_suite("none"), overrides=["data.train_limit=5000"])


def test_the_lazy_api_is_the_real_one():
    from kdbench.run import run_suite as real

    assert run_suite is real


def test_the_plan_remembers_all_trials_and_the_report_how_to_make_them(write_suite, run, tmp_path):
    suite = write_suite("none", "kd")
    run(suite, methods=["kd"], overrides=["recipe.epochs=1", "recipe.lr=0.1"])
    plan = SuiteFolder(tmp_path / "runs", "tiny").plan
    assert [(row.label, row.status) for row in plan.trials] == [("none", "pending"), ("kd", "done")]
    report = tmp_path / "reports/tiny--recipe.epochs=1--recipe.lr=0.1--method=kd"
    page = (report / "leaderboard.md").read_text()
    assert f"kdbench run {suite} --method=kd --set=recipe.epochs=1 --set=recipe.lr=0.1" in page


def test_earlier_cohorts_are_retrained_after_their_teacher(write_suite, run, watch, tmp_path):
    suite = write_suite("none")
    run(suite, overrides=SINGLE)
    replace_teacher(tmp_path)
    # Seed 1 is missing, seed 0 stands; nothing on disk tells as yet that its teacher is gone.
    for path in (tmp_path / "runs/tiny").glob("*seed1*/result.json"):
        path.unlink()
    results = run(suite, overrides=SINGLE)
    assert [trial.status for trial in results.plan.trials] == ["done", "done"]
    assert len({results.folder.trial(t.id).result.teacher.sha256 for t in results.plan.trials}) == 1
    assert len(watch.epochs) == 6
    assert results.missing == []


def test_a_checkpoint_that_does_not_fit_is_left_and_said(write_suite, run, watch, tmp_path):
    suite = write_suite("kd")
    results = run(suite)
    (trial,) = results.plan.trials
    place = results.folder.trial(trial.id)
    (place.path / "result.json").unlink()
    from kdbench.engine import checkpoint

    made_with = {
        "teacher": watch.results["kd"].teacher.sha256,
        "data": watch.results["kd"].data.fingerprint,
        "precision": "float32",
    }
    checkpoint.save(place.checkpoint, trial.id, {"phase_index": 0, "modules": {}, "made_with": made_with})
    said = []
    again = run(suite, warn=said.append)
    assert again.missing == []
    assert said == [f"{trial.id}: its checkpoint does not match or cannot be read; training starts from the beginning"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_checkpoint_names_the_teacher_the_data_and_the_precision(write_suite, run, watch, monkeypatch, precision):
    """So that none is gone on from on another kind of device."""
    from kdbench.engine import checkpoint

    saved = {}
    monkeypatch.setattr(checkpoint, "save", lambda path, name, state, check: saved.update({name: state["made_with"]}))
    run(write_suite("kd"), overrides=[f"recipe.precision={precision}"])
    made_of, teacher = watch.results["kd"].data.fingerprint, watch.results["kd"].teacher
    (trial,) = (name for name in saved if name != teacher.key)
    assert saved[trial] == {"teacher": teacher.sha256, "data": made_of, "precision": precision}
    assert saved[teacher.key] == {"data": made_of, "precision": precision}


def test_another_folder_of_images_is_other_data(write_suite, run, watch, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    for root, shade in (("one", 0), ("two", 100)):
        for split in ("train", "test"):
            for name in ("a", "b"):
                folder = tmp_path / root / split / name
                folder.mkdir(parents=True)
                for i in range(4):
                    pixels = np.random.default_rng(shade + i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{root}{i}.png")
    suite = write_suite("none")
    text = suite.read_text().replace(
        'name = "digits"\ntrain_limit = 96\ntest_limit = 50', 'name = "image_folder"\nworkers = 0'
    )
    suite.write_text(text.replace("workers = 0", f'workers = 0\nroot = "{tmp_path / "one"}"'))
    first = run(suite)
    second = run(suite, overrides=[f"data.root={tmp_path / 'two'}"])
    assert first.plan.trials[0].id != second.plan.trials[0].id
    assert first.plan.teachers[0].key != second.plan.teachers[0].key
    assert len(watch.epochs) == 3


WATCHED = """
import kdbench_of_mine
from kdbench.hookspecs import MethodSpec, ModelSpec, hookimpl
from kdbench.method import Method

@hookimpl
def kdbench_methods():
    return [MethodSpec("mine", "math:Mine")]

@hookimpl
def kdbench_models():
    return [ModelSpec("net", "math:build")]

@hookimpl
def kdbench_epoch_finished(trial):
    raise RuntimeError("no disk")

class Mine(Method):
    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), kdbench_of_mine.SCALE)}

def build(*, classes, image_shape):
    from kdbench.models.resnet import resnet
    return resnet(depth=8, classes=classes, image_shape=image_shape)
"""


def test_a_local_file_goes_by_its_name_and_is_kept_with_its_trials(write_suite, run, tmp_path):
    # The name of a module of Python's own: the target is the file nevertheless.
    (tmp_path / "math.py").write_text(WATCHED)
    (tmp_path / "kdbench_of_mine.py").write_text("SCALE = 1.0")
    suite = write_suite("mine", plugins=("math.py",))
    suite.write_text(suite.read_text().replace('student = "resnet8"', 'student = "net"'))
    warnings = []
    results = run(suite, warn=warnings.append)
    assert [trial.status for trial in results.plan.trials] == ["done"]
    assert warnings[0] == "observer 'math.py' failed in kdbench_epoch_finished: RuntimeError: no disk"
    (trial,) = results.plan.trials
    kept = {name: path.read_text() for name, path in stored_code(results.folder.trial(trial.id).path).items()}
    assert kept == {
        f"{part}/{name}": text
        for part in ("method", "student")
        for name, text in (("math.py", WATCHED), ("kdbench_of_mine.py", "SCALE = 1.0"))
    }
