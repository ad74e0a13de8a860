"""What no plan names is shown and removed; what any plan or trial still needs, or nobody can identify, is kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.claims import claiming
from kdbench.errors import ResultsError
from kdbench.recipe import Recipe
from kdbench.results import PlannedTeacher, PlannedTrial, SuiteFolder, write_json
from kdbench.results import prune as module
from kdbench.results.files import read_json
from kdbench.results.prune import prune


def run(machine, *, plan=None, path: str | None = "small.toml", remove: bool = True):
    given = None if path is None else Path(path)
    return prune(plan or machine.plan, given, machine.output, lambda method: {"temperature": 4.0}, remove=remove)


def names(machine, suite: str = "small") -> set[str]:
    return {place.path.name for place in SuiteFolder(machine.output, suite)}


@pytest.fixture
def edited(lab):
    """Two trials of the plan, one of an earlier source, one of earlier settings, and an earlier method's failure."""
    machine = lab("runs")
    earlier = [
        machine.train("kd", trial={"origin": replace(machine.planned().origin, fingerprint="old")}),
        machine.train("kd", seed=1, trial={"settings": {"temperature": 8.0}}),
        machine.fail("gone"),
    ]
    machine.trials.clear()
    kept = [machine.train("none"), machine.train("kd")]
    machine.write_plan()
    machine.earlier, machine.kept = earlier, kept
    return machine


def test_trials_that_the_plan_does_not_name_are_shown_and_removed(edited, files):
    before = {path.name: files(path) for path in edited.kept}
    size = sum(file.stat().st_size for path in edited.earlier for file in path.rglob("*") if file.is_file())
    shown = run(edited, remove=False)
    assert names(edited) == {path.name for path in (*edited.earlier, *edited.kept)}
    found = {one.folder.path.name: one for one in shown.trials}
    source, settings, method = (found[path.name] for path in edited.earlier)
    assert (source.why, source.row["settings"], source.row["status"]) == ("other source", {}, "done")
    assert (settings.why, settings.row["settings"]) == ("seed 1 is not in the plan", {"temperature": 8.0})
    assert (method.why, method.row["status"]) == ("method gone is not in the plan", "failed")
    assert (shown.teachers, shown.remarks, shown.bytes) == ([], [], size)

    removed = run(edited)
    assert [one.folder.path.name for one in removed.trials] == [one.folder.path.name for one in shown.trials]
    assert removed.bytes == size
    assert {path.name: files(path) for path in edited.folder.path.iterdir() if path.is_dir()} == before
    assert run(edited).trials == []


def test_the_difference_to_the_plan_is_given(lab):
    machine = lab("runs")
    machine.train("kd", trial={"settings": {"temperature": 8.0}, "recipe": Recipe(epochs=20)})
    machine.trials.clear()
    machine.planned("kd")
    (old,) = run(machine, remove=False).trials
    assert old.why == "other settings (temperature), recipe (drops, epochs)"
    machine.trials = [replace(machine.trials[0], student="resnet14")]
    (old,) = run(machine, remove=False).trials
    assert old.why == "student resnet8 is not in the plan"


def test_nothing_of_a_planned_trial_is_removed_whatever_its_state(lab, files):
    machine = lab("runs")
    machine.train("none")
    (machine.train("kd") / "student.safetensors").write_bytes(b"damaged")
    machine.interrupt("vid")
    machine.fail("ft")
    machine.planned("ab")
    before = files(machine.output)
    assert run(machine).bytes == 0
    assert files(machine.output) == before


def test_folders_that_are_no_trials_are_left_alone(edited):
    others = [edited.folder.path / "notes", edited.folder.path / ".claims", edited.output / "_conflicts/x/small/trial"]
    for path in others:
        path.mkdir(parents=True)
        (path / "file").write_text("x")
    (others[2] / "trial.json").write_text("x")
    run(edited)
    assert all((path / "file").exists() for path in others)


def test_hidden_folders_are_no_trials(edited):
    hidden = [edited.earlier[0].with_name(name) for name in (".claim", "_old")]
    for path in hidden:
        shutil.copytree(edited.earlier[0], path)
    assert len(run(edited).trials) == 3
    assert all((path / "trial.json").exists() for path in hidden)


def test_links_are_removed_and_what_they_lead_to_is_kept(edited, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for place in (edited.earlier[0], edited.folder.teacher(edited.teacher.key).path.parent):
        target = place.rename(tmp_path / "elsewhere" / place.name)
        place.symlink_to(target)
    plan = edited.plan
    teacher = another_teacher(edited)
    old = run(edited, plan=plan)
    assert (len(old.trials), old.teachers) == (3, [])
    assert old.remarks == [
        f"{edited.output / '_teachers'}: kept all teachers: it is a link, and other results may need them"
    ]
    assert not edited.earlier[0].is_symlink()
    assert (tmp_path / "elsewhere" / edited.earlier[0].name / "result.json").exists()
    assert (teacher / "result.json").exists()


def test_a_record_that_cannot_be_read_or_identified_is_kept_and_named(edited):
    damaged, renamed, failed = edited.earlier
    (damaged / "trial.json").write_text("{")
    renamed = renamed.rename(renamed.with_name("renamed"))
    old = run(edited)
    assert [one.folder.path for one in old.trials] == [failed]
    by_hand = "remove the folder yourself if it is not needed"
    assert f"{damaged}: kept: trial.json is truncated or not a JSON object; {by_hand}" in old.remarks
    assert f"{renamed}: kept: trial.json is of {edited.earlier[1].name}; {by_hand}" in old.remarks
    assert damaged.exists()
    assert renamed.exists()


def test_a_trial_whose_content_gives_another_id_is_kept(edited):
    path = edited.earlier[0] / "trial.json"
    write_json(path, {**read_json(path), "fingerprint": "abc"})
    (remark,) = run(edited).remarks
    assert remark.startswith(f"{path.parent}: kept: trial.json has the content of {edited.kept[1].name}; remove")
    assert path.exists()


def another_teacher(machine, epochs: int = 99):
    machine.teacher = replace(machine.teacher, recipe=Recipe(epochs=epochs))
    return machine.train_teacher()


def test_a_teacher_that_nothing_names_is_removed(edited):
    used = edited.folder.teacher(edited.teacher.key).path
    plan = edited.plan
    unused = another_teacher(edited)
    size = sum(file.stat().st_size for file in unused.rglob("*") if file.is_file())
    (teacher,) = run(edited, plan=plan, remove=False).teachers
    assert (teacher.key, teacher.model, teacher.date, teacher.bytes) == (
        unused.name, "resnet20", "2026-01-01T00:01:00+00:00", size,
    )  # fmt: skip
    assert unused.exists()
    run(edited, plan=plan)
    assert not unused.exists()
    assert used.exists()


def test_a_teacher_of_removed_trials_goes_with_them_and_one_of_the_plan_stays(lab):
    machine = lab("runs")
    machine.train("kd")
    old = machine.folder.teacher(machine.teacher.key).path
    machine.trials.clear()
    new = another_teacher(machine)
    machine.planned("kd")
    removed = run(machine)
    assert ([one.why for one in removed.trials], [one.key for one in removed.teachers]) == (
        ["other teacher"],
        [old.name],
    )
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("by", ["trial", "unfinished trial", "plan", "damaged trial", "damaged result", "damaged plan"])
def test_a_teacher_that_another_suite_may_need_is_kept(edited, lab, by):
    plan = edited.plan
    teacher = another_teacher(edited)
    other = lab("runs", suite="other")
    other.teacher, other.teacher_sha256 = edited.teacher, edited.teacher_sha256
    if by.endswith("plan"):
        other.planned("kd")
        other.write_plan()
    else:
        trial = other.interrupt("kd") if by == "unfinished trial" else other.train("kd")
    if by == "damaged trial":
        (trial / "trial.json").write_text("{")
    elif by == "damaged result":
        (trial / "result.json").write_text("{")
    elif by == "damaged plan":
        (other.folder.path / "plan.json").write_text("{")
    old = run(edited, plan=plan)
    assert old.teachers == []
    assert teacher.exists()
    assert len(old.trials) == 3
    if by in {"damaged trial", "damaged plan"}:
        name = "plan.json" if by == "damaged plan" else f"{trial.name}/trial.json"
        assert old.remarks == [
            f"{edited.output / '_teachers'}: kept all teachers, as these damaged records may name them: "
            f"{other.folder.path / name}"
        ]
    else:
        assert old.remarks == []


def test_a_damaged_teacher_is_kept_and_named(edited):
    plan = edited.plan
    teacher = another_teacher(edited)
    (teacher / "teacher.json").write_text("{")
    old = run(edited, plan=plan)
    assert old.remarks == [
        f"{teacher}: kept: teacher.json is truncated or not a JSON object; remove the folder yourself if it is "
        "not needed"
    ]
    assert teacher.exists()


@pytest.mark.parametrize(("path", "kept"), [("other.toml", True), ("/elsewhere/small.toml", False), (None, True)])
def test_trials_of_another_suite_file_that_shares_the_folder_are_kept(edited, path, kept):
    everything = edited.plan
    row = edited.folder.trial(edited.earlier[0].name).description
    last = edited.write_plan(path=path)
    teacher = another_teacher(edited)
    teachers = (*last.teachers, PlannedTeacher(name="other", key=teacher.name))
    last = last.model_copy(update={"trials": (*last.trials, PlannedTrial.of(row)), "teachers": teachers})
    edited.folder.write_plan(last)
    old = run(edited, plan=everything)
    assert teacher.exists() is kept
    assert edited.earlier[0].exists() is kept
    assert len(old.trials) == (2 if kept else 3)
    who = path or "a suite given from Python"
    assert old.remarks == (
        [
            f"{edited.folder.path}: kept 1 trial of {who}, which was the last to be run in this folder; to remove "
            "them, too, run small.toml first"
        ]
        if kept
        else []
    )


def test_a_killed_removal_continues(edited, monkeypatch):
    class Killed(BaseException):
        pass

    whole, calls = module.remove_path, []

    def remove(path):
        calls.append(path)
        if len(calls) == 4:
            raise Killed
        whole(path)

    monkeypatch.setattr(module, "remove_path", remove)
    with pytest.raises(Killed):
        run(edited)
    monkeypatch.undo()
    assert all(place.result is None or place.damage(thorough=True) == "" for place in edited.folder)
    run(edited)
    assert names(edited) == {path.name for path in edited.kept}


def test_a_folder_in_use_is_refused(edited):
    old = next(iter(names(edited) - {path.name for path in edited.kept}))
    plan = edited.plan
    teacher = another_teacher(edited)
    output = edited.folder.output
    for kind, name in ((f"{edited.folder.path.name}/trials", old), ("_teachers", teacher.name)):
        with claiming(output) as claims:
            claims.claim(kind, name)
            with pytest.raises(ResultsError) as error:
                run(edited, plan=plan)
        assert str(error.value).startswith(f"{output}: {name} is in use by process ")
        assert len(names(edited)) == 5


def test_another_protocol_and_a_missing_folder_are_refused(edited, tmp_path):
    edited.write_plan(protocol=1)
    with pytest.raises(ResultsError, match="written under protocol 1"):
        run(edited)
    assert len(names(edited)) == 5
    with pytest.raises(ResultsError) as error:
        prune(edited.plan, None, tmp_path / "none", lambda method: {})
    assert str(error.value) == f"{tmp_path / 'none/small'}: no results; name their folder with --output"
