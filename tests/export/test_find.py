"""A trial is found by what a user calls it; one without a student says why."""

from __future__ import annotations

import shutil

import pytest

from kdbench.errors import ResultsError
from kdbench.export.find import find_trial
from kdbench.results import Failure, write_json
from kdbench.results.files import read_json


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the results that may be damaged."""
    return shutil.copytree(trained.output, tmp_path / "runs")


@pytest.fixture
def refused(runs):
    """``refused(name)``: why it cannot be exported."""

    def go(name, output=runs):
        with pytest.raises(ResultsError) as error:
            find_trial(name, output)
        return str(error.value)

    return go


def rewrite(path, **changes):
    write_json(path, read_json(path) | changes)


def test_by_id_by_its_beginning_and_by_its_folder(trained):
    path = trained.path("deit_micro deit")
    for name in (path.name, f"small/{path.name}", "resnet14-deit_micro-deit-", path, str(path)):
        found = find_trial(name, trained.output)
        assert (found.id, found.path.resolve()) == (path.name, path)
        assert found.result.done
    assert find_trial(path, trained.output / "nowhere").id == path.name


def test_an_id_that_another_one_begins_with_is_meant_itself(runs, trained):
    whole = runs / "small" / trained.path("resnet8 vid").name
    longer = whole.with_name(whole.name + "0")
    shutil.copytree(whole, longer)
    assert find_trial(whole.name, runs).path == whole


def test_nothing_there(refused, tmp_path):
    empty = tmp_path / "empty"
    assert refused("vid", empty) == (
        f"{empty}: no such results folder; name it with --output, or the trial by its folder"
    )
    empty.mkdir()
    assert refused("vid", empty) == f"no trial 'vid' in {empty}; the folder contains no trials"


def test_a_misspelt_id(refused, runs, trained):
    name = trained.path("resnet8 vid").name
    assert refused(name.replace("vid", "vdi")) == (
        f"no trial '{name.replace('vid', 'vdi')}' in {runs}; did you mean '{name}'?"
    )


def test_a_part_of_ids(refused, runs, trained):
    ids = sorted(trained.path(f"{student} deit").name for student in ("resnet8", "deit_micro"))
    assert refused("-deit-seed0") == f"no trial '-deit-seed0' in {runs}; ids that contain it: {', '.join(ids)}"


def test_a_word_that_no_id_holds(refused, runs):
    assert refused("xyz").startswith(f"no trial 'xyz' in {runs}; known: resnet14-deit_micro-")
    assert refused("xyz").endswith(" and 6 more")


def test_a_beginning_of_several(refused, trained):
    ids = sorted(trained.path(f"resnet8 {label}").name for label in ("both", "deit", "explodes", "halves"))
    assert refused("resnet14-resnet8") == (
        f"'resnet14-resnet8' is ambiguous: {', '.join(ids)} and 1 more; type more characters"
    )


def test_one_that_two_suites_have(refused, runs, trained):
    name = trained.path("resnet8 vid").name
    shutil.copytree(runs / "small" / name, runs / "other" / name)
    assert refused(name) == f"{name} is in {runs / 'other' / name} and {runs / 'small' / name}; name the folder"
    (runs / "other" / name / "result.json").unlink()
    assert find_trial(name, runs).path == runs / "small" / name


def test_a_folder_of_something_else(refused, runs):
    teacher = next(path for path in (runs / "_teachers").iterdir() if path.is_dir())
    assert refused(teacher) == f"{teacher}: is the folder of a teacher; only students can be exported"
    suite = runs / "small"
    assert refused(suite) == f"{suite}: contains no trial.json; name a trial's folder, runs/<suite>/<trial id>"


def test_one_that_was_skipped(refused):
    assert refused("resnet14-deit_micro-vid").endswith(
        ": was skipped: vid pairs stages one to one; teacher resnet14 has 3, student deit_micro has 4"
    )


def test_one_that_diverged(refused, trained, runs):
    path = runs / "small" / trained.path("resnet8 explodes").name
    assert refused("resnet14-resnet8-explodes") == f"{path}: diverged in epoch 1; there is no student to export"


def test_one_that_was_only_planned(refused, runs, trained):
    name = trained.path("resnet8 vid").name
    shutil.rmtree(runs / "small" / name)
    assert refused(name) == f"{name}: is planned but not trained; kdbench run {trained.suite} trains it"


def test_one_that_is_not_finished(refused, runs, trained):
    path = runs / "small" / trained.path("resnet8 vid").name
    goes_on = f"kdbench run {trained.suite}"
    (path / "result.json").unlink()
    assert refused(path.name) == f"{path}: is not finished (epochs done: 1 of 1); {goes_on} resumes it"
    (path / "epochs.jsonl").write_text("")
    assert refused(path.name) == f"{path}: is not finished (epochs done: 0 of 1); {goes_on} resumes it"
    error = Failure(id=path.name, stage="main", epoch=1, type="MemoryError", message="no memory left")
    write_json(path / "error.json", error.to_json())
    assert refused(path.name) == f"{path}: failed: no memory left; {goes_on} tries again"


def test_one_without_weights(refused, runs, trained):
    path = runs / "small" / trained.path("resnet8 vid").name
    (path / "student.safetensors").unlink()
    assert refused(path.name) == (
        f"{path}: damaged: student.safetensors is missing; remove the folder, and "
        f"kdbench run {trained.suite} retrains the student"
    )


def test_one_of_another_protocol(refused, runs, trained):
    path = runs / "small" / trained.path("resnet8 vid").name
    rewrite(path / "trial.json", protocol=0)
    assert refused(path.name) == (
        f"{path}: written under protocol 0, this kdbench has protocol 3; export it with the kdbench that trained it"
    )


def test_one_whose_result_does_not_state_its_images(refused, runs, trained):
    path = runs / "small" / trained.path("resnet8 vid").name
    rewrite(path / "result.json", data={"name": "digits", "fingerprint": "f", "corrupt": 0})
    assert refused(path.name) == (
        f"{path / 'result.json'}: data.classes is missing, written by an earlier kdbench; "
        f"remove the folder, and kdbench run {trained.suite} retrains the student"
    )
