"""Merged results: complete, verified, never mixed; sources stay as they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from kdbench.claims import claiming
from kdbench.errors import ResultsError
from kdbench.models.weights import write_weights
from kdbench.results import SuiteFolder, TrialFolder, write_json
from kdbench.results.files import read_json
from kdbench.results.find import find_folder
from kdbench.results.listing import list_trials
from kdbench.results.merge import copying, merge
from kdbench.status import Status


@pytest.fixture
def into(tmp_path) -> Path:
    return tmp_path / "all"


@pytest.fixture
def two(lab):
    """Two machines, each with one seed of two methods, and the same teacher."""
    labs = lab("one"), lab("two", torch_version="2.12.0")
    for seed, machine in enumerate(labs):
        machine.day = seed + 1
        for method in ("none", "kd"):
            machine.train(method, seed, top1=80.0 + seed)
        machine.write_plan()
    return labs


def ids(folder: Path) -> set[str]:
    return {place.path.name for place in SuiteFolder(folder, "small") if place.result is not None}


def test_trials_of_two_machines_come_together_with_teacher_code_and_plan(two, into, tmp_path, files):
    one, other = two
    before = files(tmp_path / "one"), files(tmp_path / "two")
    done = merge([one.output, other.output], into)
    assert done.complete
    assert (done.remarks, done.decisions.duplicates) == ([], [])
    assert ids(into) == {trial.id for machine in two for trial in machine.trials}
    suite = SuiteFolder(into, "small")
    for machine in two:
        for trial in machine.trials:
            source, copy = machine.folder.trial(trial.id).path, suite.trial(trial.id).path
            assert files(copy) == files(source)
            assert (copy / "source/method/loss.py").read_bytes() == b"LOSS = 1\n"
            assert suite.trial(trial.id).damage(thorough=True) == ""
            assert suite.trial(trial.id).result.environment.torch == machine.torch_version
    assert files(suite.teacher(one.teacher.key).path) == files(one.folder.teacher(one.teacher.key).path)
    assert done.bytes == sum(len(content) for name, (content, _) in files(into).items() if name != "small/plan.json")
    plan = suite.plan
    assert [(row.label, row.seed, row.status) for row in plan.trials] == [
        ("none", 0, "done"), ("none", 1, "done"), ("kd", 0, "done"), ("kd", 1, "done"),
    ]  # fmt: skip
    assert (plan.suite["seeds"], plan.updated) == ([0, 1], "2026-01-02T01:00:00+00:00")
    assert (files(tmp_path / "one"), files(tmp_path / "two")) == before


def test_a_second_merge_changes_nothing(two, into, files):
    sources = [machine.output for machine in two]
    merge(sources, into)
    before = files(into)
    done = merge(sources, into)
    assert files(into) == before
    assert (done.complete, done.decisions.moves, len(done.decisions.duplicates), done.bytes) == (True, [], 4, 0)
    assert {duplicate.kept.source for duplicate in done.decisions.duplicates} == {into}


def test_a_dry_run_writes_nothing_and_decides_the_same(two, into):
    other = two[1]
    other.train("kd", 0, top1=70.0, weight=2.0)
    two[0].train("none", 2)
    shutil.copytree(two[0].output / "small" / two[0].trials[-1].id, other.output / "small" / two[0].trials[-1].id)
    sources = [machine.output for machine in two]
    planned = merge(sources, into, dry_run=True)
    assert not into.exists()
    done = merge(sources, into)
    for name in ("moves", "duplicates", "conflicts"):
        decided = [
            [(one.found.source, one.found.id, getattr(one, "home", into)) for one in getattr(result.decisions, name)]
            for result in (planned, done)
        ]
        assert len(decided[0]) > 0
        assert decided[0] == decided[1], name


def test_the_same_numbers_are_kept_once_and_both_origins_are_given(lab, into):
    one, other = lab("one"), lab("two", torch_version="2.12.0")
    first = one.train("kd", top1=90.0)
    other.day = 5
    other.train("kd", top1=90.0, cost={"seconds": 99.0, "teacher_seconds": 1.0, "extra_epochs": 0})
    done = merge([one.output, other.output], into)
    (duplicate,) = done.decisions.duplicates
    assert done.complete
    assert (duplicate.kept.source, duplicate.found.source) == (one.output, other.output)
    found = duplicate.found.result
    assert (found.environment.torch, found.finished) == ("2.12.0", "2026-01-05T00:01:00+00:00")
    assert (into / "small" / first.name / "result.json").read_bytes() == (first / "result.json").read_bytes()


def test_a_nan_is_the_same_number_as_a_nan(lab, into):
    machines = lab("one"), lab("two")
    for machine in machines:
        machine.train("kd", metrics={"top1": 90.0, "kl_to_teacher": float("nan")})
        machine.train("none", status=Status.DIVERGED)
    done = merge([machine.output for machine in machines], into)
    assert (done.complete, len(done.decisions.duplicates)) == (True, 2)


def test_the_same_tensors_in_another_file_are_the_same_weights(lab, into, again):
    one, other = lab("one"), lab("two")
    one.train("kd")
    place = TrialFolder(other.train("kd"))
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.full((3,), 1.0)}, place.weights, metadata={"written": "by another version"})
    again(place)
    assert place.weights.read_bytes() != one.folder.trial(place.path.name).weights.read_bytes()
    assert merge([one.output, other.output], into).complete


CONFLICTS = {
    "metrics (top1)": {"metrics": {"top1": 91.0, "nll": 0.3}},
    "metrics (nll)": {"metrics": {"top1": 90.0, "nll": 0.30000000000000004}},
    "metrics (ece)": {"metrics": {"top1": 90.0, "nll": 0.3, "ece": 0.1}},
    "validation (top1)": {"validation": {"top1": 50.0}},
    "epoch": {"epoch": 9},
    "best_on_test": {"best_on_test": {"epoch": 1, "top1": 99.0}},
    "weights": {"weight": 1.0000001},
}


@pytest.mark.parametrize("what", CONFLICTS)
def test_other_numbers_are_kept_apart_and_shown(lab, into, what, files):
    one, other = lab("one"), lab("two", torch_version="2.12.0")
    first, second = one.train("kd"), other.train("kd", **CONFLICTS[what])
    done = merge([one.output, other.output], into)
    (conflict,) = done.decisions.conflicts
    assert not done.complete
    assert conflict.differs == (what,)
    assert (conflict.kept.source, conflict.found.source, conflict.home) == (
        one.output, other.output, into / "_conflicts/two",
    )  # fmt: skip
    assert files(into / "small" / first.name) == files(first)
    assert files(into / "_conflicts/two/small" / second.name) == files(second)
    assert SuiteFolder(into / "_conflicts/two", "small").teacher(other.teacher.key).result is not None


def test_the_destination_stays_and_conflicts_are_found_again_but_not_copied_again(lab, into, files):
    one, other, third = lab("one"), lab("two"), lab("three")
    one.train("kd", top1=90.0)
    other.train("kd", top1=91.0)
    third.train("kd", top1=91.0)
    merge([one.output], into)
    merge([other.output], into)
    before = files(into)
    done = merge([other.output, one.output, third.output], into)
    assert files(into) == before
    assert [conflict.home for conflict in done.decisions.conflicts] == [into / "_conflicts/two"] * 2
    assert [duplicate.found.source for duplicate in done.decisions.duplicates] == [one.output]


def test_conflicts_of_folders_with_one_name_do_not_replace_each_other(lab, into):
    lab("a/results").train("kd", top1=90.0)
    for number, top1 in enumerate((91.0, 92.0, 93.0)):
        lab(f"{number}/results").train("kd", top1=top1)
    lab("b/runs").train("kd", top1=94.0)
    root = into.parent
    merge([root / "a/results", root / "0/results", root / "1/results"], into)
    merge([root / "2/results", root / "b/runs"], into)
    kept = {path.name: ids(path) for path in (into / "_conflicts").iterdir()}
    assert sorted(kept) == ["b-runs", "results", "results-2", "results-3"]
    values = [
        SuiteFolder(path, "small").trial(next(iter(ids(path)))).result.top1
        for path in sorted((into / "_conflicts").iterdir())
    ]
    assert sorted(values) == [91.0, 92.0, 93.0, 94.0]


def test_students_of_a_teacher_with_other_weights_are_conflicts(lab, into):
    one, other = lab("one"), lab("two")
    one.train("none")
    other.train_teacher(weight=2.0)
    same, new = other.train("none"), other.train("kd")
    done = merge([one.output, other.output], into)
    assert [(c.found.folder.path, c.differs, c.kept is None) for c in done.decisions.conflicts] == [
        (new, ("teacher",), True),
        (same, ("teacher",), False),
    ]
    assert ids(into) == {same.name}
    assert ids(into / "_conflicts/two") == {same.name, new.name}
    teachers = [SuiteFolder(home, "small").teacher(one.teacher.key) for home in (into, into / "_conflicts/two")]
    assert [teacher.result.sha256 for teacher in teachers] == [one.teacher_sha256, other.teacher_sha256]
    assert one.teacher_sha256 != other.teacher_sha256


def test_students_without_their_teacher_in_the_destination_refuse_another_one(lab, into):
    one, other = lab("one"), lab("two")
    one.train("none")
    merge([one.output], into)
    shutil.rmtree(into / "_teachers")
    other.train_teacher(weight=2.0)
    other.train("kd")
    done = merge([other.output], into)
    assert [conflict.differs for conflict in done.decisions.conflicts] == [("teacher",)]
    assert not SuiteFolder(into, "small").teacher(one.teacher.key).weights.exists()
    done = merge([one.output], into)
    assert [(move.trial, move.teacher) for move in done.decisions.moves] == [(False, True)]
    assert SuiteFolder(into, "small").teacher(one.teacher.key).result.sha256 == one.teacher_sha256


def test_other_images_under_the_same_settings_are_a_conflict(lab, into):
    one, other = lab("one"), lab("two")
    one.train("none")
    images = {"data": {"name": "digits", "fingerprint": "beef"}}
    other.train_teacher(**images)
    other.train("none", **images)
    (conflict,) = merge([one.output, other.output], into).decisions.conflicts
    assert conflict.differs == ("teacher", "images")


def test_conflicts_are_no_suite_for_other_commands(lab, into):
    one, other = lab("one"), lab("two")
    trial = one.train("kd", top1=90.0)
    other.train("kd", top1=91.0)
    merge([one.output, other.output], into)
    assert [row["suite"] for row in list_trials(into, (), lambda method: {})] == ["small"]
    assert find_folder(trial.name, into) == into / "small" / trial.name
    (row,) = list_trials(into / "_conflicts/two", (), lambda method: {})
    assert row["top1"] == 91.0


def test_unfinished_and_failed_trials_are_counted_and_not_copied(lab, into):
    machine = lab("one")
    done = machine.train("none")
    machine.interrupt("kd")
    machine.interrupt("vid")
    machine.fail("ft")
    found = merge([machine.output], into)
    assert (found.sources[0].unfinished, found.sources[0].failed, found.complete) == (2, 1, True)
    assert [path.name for path in (into / "small").iterdir() if path.is_dir()] == [done.name]


@pytest.mark.parametrize("begin", ["interrupt", "fail", "damage"])
def test_what_is_no_result_in_the_destination_is_replaced(lab, into, begin, files):
    one, there = lab("one"), lab("all")
    done = one.train("kd")
    if begin == "damage":
        place = there.train("kd")
        (place / "student.safetensors").write_bytes(b"x")
    else:
        place = getattr(there, begin)("kd")
    assert merge([one.output], into).complete
    assert files(place) == files(done)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    status = path.stat()
    path.write_bytes(content)
    # As a disk does it: the size and the time stay.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change(path: Path, **entries: object) -> None:
    """Change a record, with a correct checksum of its own."""
    write_json(path, {**read_json(path), **entries})


def rename(trial: Path) -> None:
    trial.rename(trial.with_name("resnet20-resnet8-kd-seed0-0123456789"))


def rename_all(trial: Path, again) -> None:
    """Another id in the folder's name and in all records, with correct checksums."""
    place = TrialFolder(trial.rename(trial.with_name("another")))
    change(place.path / "trial.json", id="another")
    again(place, id="another")


def edit(trial: Path, again, **entries: object) -> None:
    change(trial / "trial.json", **entries)
    again(TrialFolder(trial))


ID = "resnet20-resnet8-kd-seed0-"
TRIALS = {
    "flipped weights": (
        lambda t, again: flip(t / "student.safetensors"), "student.safetensors does not match its checksum"
    ),
    "lost weights": (lambda t, again: (t / "student.safetensors").unlink(), "student.safetensors is missing"),
    "flipped epochs": (lambda t, again: flip(t / "epochs.jsonl"), "epochs.jsonl does not match its checksum"),
    "cut result": (lambda t, again: (t / "result.json").write_text("{"), "result.json is truncated or not a JSON"),
    "changed result": (
        lambda t, again: (t / "result.json").write_text((t / "result.json").read_text().replace("90.0", "99.0")),
        "result.json does not match its checksum",
    ),
    "changed trial": (lambda t, again: change(t / "trial.json", label="x"), "trial.json does not match its checksum"),
    "wrong folder": (lambda t, again: rename(t), "result.json is of " + ID),
    "wrong id": (rename_all, "trial.json has the content of " + ID),
    "edited settings": (
        lambda t, again: edit(t, again, settings={"temperature": 8.0}), "trial.json has the content of " + ID
    ),
    "edited seed": (lambda t, again: edit(t, again, seed=1), "trial.json has the content of resnet20-resnet8-kd-s"),
    "no teacher named": (
        lambda t, again: again(TrialFolder(t), teacher=None), "result.json does not name its teacher's weights"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TRIALS)
def test_a_changed_trial_is_not_copied_and_the_others_are(lab, into, what, again):
    machine = lab("one")
    good, bad = machine.train("none"), machine.train("kd")
    assert merge([machine.output], into, dry_run=True).complete
    mutate, reason = TRIALS[what]
    mutate(bad, again)
    done = merge([machine.output], into)
    (left_out,) = done.left_out
    assert (left_out.source, left_out.suite) == (machine.output, "small")
    assert left_out.reason.startswith(reason), left_out.reason
    assert ids(into) == {good.name}
    assert not done.complete


def other_weights(teacher: Path, again) -> None:
    """Weights of another training, with a correct checksum of their file."""
    place = SuiteFolder(teacher.parents[1], "").teacher(teacher.name)
    write_weights(place.weights, {"fc.weight": torch.full((2, 3), 5.0), "count": torch.tensor(7)})
    again(place)


def retrained(teacher: Path, again) -> None:
    other_weights(teacher, again)
    place = SuiteFolder(teacher.parents[1], "").teacher(teacher.name)
    from kdbench.results.digest import weights_digest

    again(place, sha256=weights_digest(place.weights))


def edit_teacher(teacher: Path, again, **entries: object) -> None:
    change(teacher / "teacher.json", **entries)
    again(SuiteFolder(teacher.parents[1], "").teacher(teacher.name))


TEACHERS = {
    "missing": (lambda t, again: shutil.rmtree(t), "is missing in {teachers}"),
    "unfinished": (lambda t, again: (t / "result.json").unlink(), "is missing in {teachers}"),
    "flipped weights": (
        lambda t, again: flip(t / "teacher.safetensors"), "teacher.safetensors does not match its checksum"
    ),
    "other weights": (other_weights, "teacher.safetensors does not have the weights that result.json names"),
    "retrained": (retrained, "has other weights ("),
    "edited recipe": (
        lambda t, again: edit_teacher(t, again, recipe={"epochs": 99}), "teacher.json has the content of "
    ),
    "other images": (
        lambda t, again: again(
            SuiteFolder(t.parents[1], "").teacher(t.name), data={"name": "digits", "fingerprint": "beef"}
        ),
        "was trained on other images than the student",
    ),
    "wrong folder": (
        lambda t, again: (change(t / "result.json", id="another")), "result.json is of another",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TEACHERS)
def test_no_student_is_copied_without_its_teacher(lab, into, what, again):
    machine = lab("one")
    machine.train("none")
    machine.train("kd")
    teacher = machine.folder.teacher(machine.teacher.key).path
    mutate, reason = TEACHERS[what]
    mutate(teacher, again)
    done = merge([machine.output], into)
    expected = f"teacher {teacher.name}: " + reason.format(teachers=teacher.parent)
    assert [one.reason.startswith(expected) for one in done.left_out] == [True, True], done.left_out
    assert not into.exists()


def test_a_teacher_whose_weights_were_not_read_back_yet_is_verified_by_its_file(lab, into, again):
    machine = lab("one")
    machine.train("kd")
    again(machine.folder.teacher(machine.teacher.key), sha256=None)
    assert merge([machine.output], into).complete


def test_a_key_that_an_older_record_cannot_give_is_a_remark(lab, into, again):
    machine = lab("one")
    machine.train("kd")
    place = machine.folder.teacher(machine.teacher.key)
    record = read_json(place.path / "teacher.json")
    for name in ("protocol", "weights_sha256", "model_source", "part_sources"):
        del record[name]
    write_json(place.path / "teacher.json", record)
    again(place)
    assert merge([machine.output], into, dry_run=True).remarks[:1] == [
        "small: no folder has its plan.json; the new one names all trials, by their ids"
    ]
    change(place.path / "teacher.json", weights="resnet20.pth")
    again(place)
    done = merge([machine.output], into)
    assert done.complete
    assert f"{place.path}: its key was not verified: an earlier version wrote its teacher.json" in done.remarks


def test_another_protocol_is_refused_by_name(two, into):
    one, other = two
    other.write_plan(protocol=1)
    with pytest.raises(ResultsError) as error:
        merge([one.output, other.output], into)
    assert str(error.value) == (
        f"{other.folder.path}: written under protocol 1, this kdbench has protocol 3: the numbers must not be mixed; "
        "leave this folder out"
    )
    assert not into.exists()


def test_a_trial_of_another_protocol_is_refused_by_name(lab, into, again):
    machine = lab("one")
    trial = machine.train("kd")
    edit(trial, again, protocol=1)
    with pytest.raises(ResultsError) as error:
        merge([machine.output], into)
    assert str(error.value) == (
        f"{trial}: trained under protocol 1, this kdbench has protocol 3: the numbers must not be mixed; "
        "leave this folder out"
    )


def test_a_destination_of_another_protocol_is_refused(two, into, lab):
    there = lab("all")
    there.train("kd")
    there.write_plan(protocol=1)
    with pytest.raises(ResultsError, match=r"all/small: written under protocol 1.*; name another --into$"):
        merge([two[0].output], into)


def test_folders_that_are_no_results_or_overlap_are_refused(two, into, tmp_path):
    one = two[0].output
    trial = next(iter(two[0].folder)).path
    (tmp_path / "empty/notes").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    refused = {
        (tmp_path / "none", into): f"{tmp_path / 'none'}: no such folder; name the --output folder of kdbench run",
        (
            tmp_path / "empty",
            into,
        ): f"{tmp_path / 'empty'}: contains no results; name the --output folder of kdbench run",
        (one / "small", into): f"{one / 'small'}: is a folder in a results folder (it has a plan.json); name the whole "
        "results folder, as --output of kdbench run",
        (
            trial,
            into,
        ): f"{trial}: is a folder in a results folder (it has a trial.json); name the whole results folder, "
        "as --output of kdbench run",
        (one, one): f"{one}: is {one}, or one of them contains the other; name another --into",
        (one, one / "all"): f"{one}: is {one / 'all'}, or one of them contains the other; name another --into",
        (one, tmp_path): f"{one}: is {tmp_path}, or one of them contains the other; name another --into",
        (one, tmp_path / "file"): f"{tmp_path / 'file'}: is not a folder; name another --into",
    }
    for (source, target), message in refused.items():
        with pytest.raises(ResultsError) as error:
            merge([source], target)
        assert str(error.value) == message
    link = tmp_path / "link"
    link.symlink_to(one)
    for sources, target in (([one, link], into), ([one], link)):
        with pytest.raises(ResultsError, match=r"is the same folder as|one of them contains"):
            merge(sources, target)
    assert not into.exists()


@pytest.mark.parametrize("stop", range(12))
def test_a_killed_merge_leaves_no_half_result_and_continues(two, into, files, tmp_path, monkeypatch, stop):
    class Killed(BaseException):
        pass

    copied = []
    whole = copying._copy

    def copy(*arguments):
        if len(copied) == stop:
            raise Killed
        copied.append(arguments[1])
        return whole(*arguments)

    sources = [machine.output for machine in two]
    monkeypatch.setattr(copying, "_copy", copy)
    with pytest.raises(Killed):
        merge(sources, into)
    monkeypatch.undo()
    suite = SuiteFolder(into, "small")
    for path in into.rglob("result.json"):
        assert all((path.parent / name).exists() for name in read_json(path)["files"])
    for name in ids(into):
        assert suite.trial(name).damage(thorough=True) == ""
        assert suite.teacher(two[0].teacher.key).damage(thorough=True) == ""
        assert suite.teacher(two[0].teacher.key).result is not None
    assert merge(sources, into).complete
    merge(sources, tmp_path / "at once")
    merged, at_once = files(into), files(tmp_path / "at once")
    assert {name: content for name, (content, _) in merged.items()} == {
        name: content for name, (content, _) in at_once.items()
    }


def test_a_source_that_changes_meanwhile_costs_nothing(two, into, monkeypatch):
    from kdbench.results.merge import decide

    trial = two[0].folder.trial(two[0].trials[0].id)

    def late(*arguments):
        flip(trial.weights)
        return decide(*arguments)

    monkeypatch.setattr("kdbench.results.merge.decide", late)
    with pytest.raises(ResultsError) as error:
        merge([two[0].output], into)
    assert str(error.value) == (
        f"{trial.weights}: changed during the merge; if a run uses the folder, wait for its end, then merge again"
    )
    assert trial.path.name not in ids(into)


@pytest.mark.parametrize("kind", ["trial", "teacher"])
def test_a_destination_in_use_is_refused(two, into, kind):
    into.mkdir()
    trial, teacher = two[0].trials[0].id, two[0].teacher.key
    with claiming(into) as claims:
        claims.claim(*(("small/trials", trial) if kind == "trial" else ("_teachers", teacher)))
        with pytest.raises(ResultsError, match=r" is in use by process \d+ on \S+; wait for it or stop it$"):
            merge([two[0].output], into)
    assert ids(into) == set()
    merge([two[0].output], into)
    assert trial in ids(into)


def test_a_destination_that_leads_into_a_source_is_refused(two, into):
    into.mkdir()
    (into / "_teachers").symlink_to(two[0].output / "_teachers")
    with pytest.raises(ResultsError) as error:
        merge([two[0].output], into)
    assert str(error.value) == f"{into / '_teachers'}: is a link into {two[0].output}; name another --into"


def test_hidden_folders_are_no_trials(lab, into):
    machine = lab("one")
    trial = machine.train("kd")
    for name in (".claim", "_old"):
        shutil.copytree(trial, trial.with_name(name))
    done = merge([machine.output], into)
    assert (done.complete, ids(into)) == (True, {trial.name})


def test_a_link_in_the_stored_code_is_not_followed(lab, into, tmp_path):
    machine = lab("one")
    trial = machine.train("kd")
    (tmp_path / "secret").write_text("secret")
    (trial / "source/method/link.py").symlink_to(tmp_path / "secret")
    merge([machine.output], into)
    assert [path.name for path in (into / "small" / trial.name / "source/method").iterdir()] == ["loss.py"]


def test_results_without_a_plan_get_one_that_a_report_can_read(lab, into):
    machine = lab("one")
    machine.train("kd")
    done = merge([machine.output], into)
    assert done.remarks == ["small: no folder has its plan.json; the new one names all trials, by their ids"]
    plan = SuiteFolder(into, "small").plan
    assert [(row.label, row.status) for row in plan.trials] == [("kd", "done")]
    # A real one, which comes later, replaces it.
    machine.write_plan()
    assert merge([machine.output], into).remarks == []
    assert SuiteFolder(into, "small").plan.suite["question"] == "Which loss?"


def test_a_damaged_plan_is_named(lab, into):
    machine = lab("one")
    machine.train("kd")
    machine.write_plan()
    (machine.folder.path / "plan.json").write_text(json.dumps({"protocol": 3, "checksum": "x"}))
    done = merge([machine.output], into)
    assert done.remarks[0] == f"{machine.folder.path / 'plan.json'}: is damaged and not used"
