"""A third party's metric, section and figure, from the suite's file to the page; and the page without them."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from kdbench.export.find import find_trial

PLUGIN = """
from markupsafe import Markup

from kdbench.hookspecs import FigureSpec, MetricSpec, SectionSpec, hookimpl


@hookimpl
def kdbench_metrics():
    return [
        MetricSpec("brier", "mine:brier", heading="Brier score", higher_is_better=False, low=0.0, high=2.0),
        MetricSpec("broken", "mine:broken"),
    ]


@hookimpl
def kdbench_report_sections():
    return [SectionSpec("wins", "mine:wins", title="Wins", after="verdict")]


@hookimpl
def kdbench_figures():
    return [FigureSpec("bars", "mine:bars", section="wins")]


def brier(logits, labels):
    wrong = logits.softmax(1)
    wrong[range(len(labels)), labels] -= 1
    return wrong.square().sum(1).mean()


def broken(logits, labels):
    raise ValueError("no good")


def wins(study):
    return Markup("<p>{} wins.</p>").format(study.cells["label"].iloc[0])


def bars(study):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().bar(study.cells["label"], study.cells["brier_mean"])
    return figure, "The Brier scores."
"""
ADDS = """
metrics = ["brier", "broken"]
sections = ["wins"]
figures = ["bars"]
"""


@pytest.fixture
def suite(write_suite, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    path = write_suite("none", "kd", plugins=("mine.py",))
    path.write_text(ADDS + path.read_text().replace("epochs = 3", "epochs = 1"))
    return path


def test_what_a_suite_adds_is_measured_and_shown_also_when_its_plugin_is_gone(suite, kdbench, tmp_path):
    done = kdbench("run", suite, "--tracking-uri", "none")
    assert done.returncode == 0, done.stderr
    (said,) = {line for line in done.stderr.splitlines() if "metric" in line}
    assert "metric 'broken' of mine.py: ValueError: no good (mine.py, line 3" in said
    report = tmp_path / "reports" / "tiny"
    page = (report / "index.html").read_text()
    assert "Brier score" in page
    assert " wins.</p>" in page
    assert "The Brier scores." in page
    assert (report / "plots" / "bars.png").is_file()
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/tiny/*/result.json")]
    assert len(results) == 2
    for result in results:
        assert 0 <= result["metrics"]["brier"] <= 2
        assert result["unmeasured"]["broken"].startswith("ValueError: no good")
    trials = pd.read_csv(report / "trials.csv")
    assert sorted(trials["brier"]) == pytest.approx(sorted(result["metrics"]["brier"] for result in results), rel=1e-5)
    assert trials["broken"].isna().all()
    assert "brier_mean" in pd.read_csv(report / "leaderboard.csv")

    (tmp_path / "mine.py").unlink()
    exported = find_trial(results[0]["id"], tmp_path / "runs")
    assert exported.metrics["brier"].column == "Brier score"
    again = kdbench("report", "tiny")
    assert again.returncode == 0, again.stderr
    assert "mine.py: not found" in again.stderr
    assert "section 'wins' is left out of the report: section 'wins' is not registered" in again.stderr
    page = (report / "index.html").read_text()
    assert "Brier score" in page
    assert " wins.</p>" not in page
    assert "The section &#39;wins&#39; is missing: section &#39;wins&#39; is not registered" in page

    # No trial is another one for what is measured of it.
    suite.write_text(suite.read_text().replace(ADDS, "").replace("['mine.py']", "[]"))
    planned = json.loads(kdbench("plan", suite, "--json").stdout)
    assert {trial["status"] for trial in planned["trials"]} == {"done"}
