"""Which results a report shows, and where it is written: by run, and by the report command."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from kdbench.cli.suites import report as report_command
from kdbench.errors import KdbenchError, SuiteError
from kdbench.run import run_suite

pytestmark = pytest.mark.usefixtures("without_figures")

EXTENDS = """
extends = "tiny.toml"
[[add_methods]]
name = "vid"
label = "mine"
"""
SMALL = ["recipe.epochs=1"]


@pytest.fixture
def report(tmp_path, monkeypatch):
    """``kdbench report`` in ``tmp_path``; what was printed is in ``capsys``."""
    monkeypatch.chdir(tmp_path)

    def go(suite: str | Path, **options: object) -> None:
        report_command(str(suite), output=Path("runs"), report_dir=Path("reports"), **options)

    return go


def board(tmp_path: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "reports" / name / "leaderboard.csv").set_index("label")


def reports(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "reports").iterdir()}


def test_a_run_of_the_base_suite_takes_nothing_from_the_report_of_one_that_extends_it(
    write_suite, run, report, tmp_path, capsys
):
    base = write_suite("none", "kd")
    mine = tmp_path / "mine.toml"
    mine.write_text(EXTENDS)
    run(mine)
    assert reports(tmp_path) == {"mine"}
    run(base)
    assert reports(tmp_path) == {"mine", "tiny"}
    assert set(board(tmp_path, "mine").index) == {"none", "kd", "mine"}
    assert set(board(tmp_path, "tiny").index) == {"none", "kd"}
    # plan.json is now the base suite's; the file says what is reported.
    for file in (tmp_path / "reports" / "mine").glob("*.*"):
        file.unlink()
    report(mine)
    assert list(board(tmp_path, "mine")["n"]) == [1, 1, 1]
    assert set(board(tmp_path, "mine").index) == {"none", "kd", "mine"}


def test_a_smoke_run_writes_a_report_of_its_own_and_later_reports_stay_whole(
    write_suite, run, report, tmp_path, capsys
):
    suite = write_suite("none", "kd")
    run(suite)
    whole = (tmp_path / "reports/tiny/trials.csv").read_bytes()
    results = run(suite, overrides=SMALL, methods=["kd"])
    assert results.report == tmp_path / "reports" / "tiny--recipe.epochs=1--method=kd"
    assert list(pd.read_csv(results.report / "trials.csv")["label"]) == ["kd"]
    assert list(results.to_frame()["label"]) == ["kd"]
    assert (tmp_path / "reports/tiny/trials.csv").read_bytes() == whole
    # The last plan is the smoke run's. Its trials are others than the file's.
    report(suite)
    assert (tmp_path / "reports/tiny/trials.csv").read_bytes() == whole
    report(suite, overrides=SMALL)
    assert board(tmp_path, "tiny--recipe.epochs=1")["n"].to_dict() == {"kd": 1, "none": 0}
    capsys.readouterr()
    report("tiny")
    assert capsys.readouterr().out.startswith(f"runs{os.sep}tiny: as last planned from {suite}; ")
    assert reports(tmp_path) == {"tiny", "tiny--recipe.epochs=1", "tiny--recipe.epochs=1--method=kd"}


def test_results_are_shown_under_the_labels_that_the_file_has_now(write_suite, run, report, tmp_path):
    suite = write_suite("none", "kd", more='label = "first name"\n')
    run(suite)
    write_suite("none", "kd", more='label = "second name"\n')
    report(suite)
    assert board(tmp_path, "tiny")["n"].to_dict() == {"second name": 1, "none": 1}


def test_untrained_trials_of_the_file_are_missing(write_suite, run, report, tmp_path):
    run(write_suite("none"))
    report(write_suite("none", "kd"))
    assert board(tmp_path, "tiny")[["n", "pending"]].to_numpy().tolist() == [[1, 0], [0, 1]]


def test_a_named_report_that_would_lose_results_says_so(write_suite, run, report, tmp_path, capsys):
    suite = write_suite("none", "kd")
    run(suite)
    report(suite, methods=["none"], report_name="tiny")
    said = " ".join(capsys.readouterr().err.split())
    assert "the previous report showed 1 finished trial that the new one does not (kd)" in said
    assert list(board(tmp_path, "tiny").index) == ["none"]
    report(suite)
    assert "finished trial" not in capsys.readouterr().err


def test_a_reports_name_is_no_path(write_suite, run):
    with pytest.raises(KdbenchError, match=r"--report-name \.\./x: must be a folder name, not a path"):
        run(write_suite("none"), report_name="../x")


def test_no_results_at_all_is_an_error_that_names_the_folder(write_suite, report):
    suite = write_suite("none")
    with pytest.raises(KdbenchError, match=r"^runs.tiny: no results; train them with `kdbench run .*tiny\.toml`, or"):
        report(suite)


def test_a_changed_expectation_of_a_finished_suites_teacher_is_remarked(write_suite, run, report, kdbench, tmp_path):
    suite = write_suite("none")
    run(suite)
    expects = write_suite("none", more="[teachers.resnet8]\nexpected_top1 = 99.9\n")
    heard: list[str] = []
    run_suite(expects, output=tmp_path / "runs", report_dir=tmp_path / "reports", observers=[], warn=heard.append)
    (message,) = heard
    assert message.startswith("teacher resnet8: reaches ")
    assert "the suite expects 99.90 ± 1.00 %; its students are trained already; correct teachers.resnet8" in message
    for name in ("index.html", "leaderboard.md"):
        assert "the suite expects 99.90 ± 1.00 %" in (tmp_path / "reports/tiny" / name).read_text()
    shown = kdbench("plan", suite)
    assert "warning: teacher resnet8: reaches" in shown.stdout


def test_a_highlighted_label_is_marked_also_when_nothing_is_left_to_train(write_suite, run, report, watch, tmp_path):
    suite = write_suite("none", "kd")
    with pytest.raises(SuiteError, match=r"^--highlight kdd: no label of the methods shown; did you mean 'kd'\?$"):
        run(suite, highlight=["kdd"])
    assert watch.heard == []
    run(suite)
    page = tmp_path / "reports/tiny/index.html"
    assert "★" not in page.read_text()
    run(suite, highlight=["kd"])
    assert watch.epochs == []
    assert "★ Highlighted: kd" in page.read_text()
    report(suite, highlight=["none"])
    assert "★ Highlighted: none" in page.read_text()
