"""Sections and figures of plugins: in their places, and each at its own risk."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdbench.discovery import add_file, discover
from kdbench.report import made_from
from kdbench.report.parts import PageParts, parts_of
from kdbench.report.render import render
from kdbench.results import PlanRecord, SuiteFolder
from kdbench.results.planned import ShownMetric

PLUGIN = """
from markupsafe import Markup

from kdbench.hookspecs import FigureSpec, SectionSpec, hookimpl


@hookimpl
def kdbench_report_sections():
    target = f"{__name__}:{{}}".format
    return [
        SectionSpec("wins", target("wins"), title="Who <wins>", after="verdict"),
        SectionSpec("more-wins", target("wins"), after="verdict", presets={"word": "seldom"}),
        SectionSpec("raises", target("raises")),
        SectionSpec("text", target("text")),
        SectionSpec("nothing", target("nothing")),
    ]


@hookimpl
def kdbench_figures():
    target = f"{__name__}:{{}}".format
    return [
        FigureSpec("bars", target("bars"), section="wins"),
        FigureSpec("dots.2", target("bars"), section="nothing"),
        FigureSpec("bare", target("bare"), section="wins"),
        FigureSpec("raises", target("raises")),
    ]


def wins(study, *, word="often"):
    study.trials["label"] = study.cells["pair"] = "mine"
    return Markup("<p>{} wins {}</p>").format(study.cells["label"].iloc[0], word)


def text(study):
    return "<p>Unsafe"


def nothing(study):
    return None


def raises(study):
    raise SystemExit("no &\\n more")


def bars(study):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().bar(study.cells["label"], study.cells["n"])
    return figure, "How many."


def bare(study):
    return bars(study)[0]
"""
SECTIONS = ["wins", "more-wins", "raises", "text", "nothing"]
FIGURES = ["bars", "dots.2", "bare", "raises"]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def write(runs: Callable[..., Any], **tables: Any) -> SuiteFolder:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, top1 in (("none", 70.0), ("kd", 72.0)):
        suite.done("resnet20", "resnet8", label, 0, top1)
    suite.tables |= tables
    return suite.write()


def parts(folder: SuiteFolder, *files: Path) -> PageParts:
    registry = discover()
    for file in files:
        add_file(registry, file)
    assert folder.plan is not None
    return parts_of(folder.plan, registry)


def headings(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)"', page)


def test_each_is_where_it_belongs_and_says_why_it_is_missing(
    runs: Callable[..., Any], plugin: Path, tmp_path: Path
) -> None:
    folder = write(runs, sections=SECTIONS, figures=FIGURES)
    heard: list[str] = []
    path = render(folder, tmp_path / "report", parts=parts(folder, plugin), warn=heard.append)
    page = path.read_text(encoding="utf-8")
    assert headings(page) == [
        *("verdict", "wins", "more-wins", "pairs", "beside", "costs", "rules", "environment"),
        *("raises", "text", "further-figures"),
    ]
    assert '<h2 id="wins-title">Who &lt;wins&gt;</h2>\n  <p>kd wins often</p>' in page
    assert "<p>kd wins seldom</p>" in page
    assert "&lt;p&gt;Unsafe" not in page
    assert "<p>Unsafe" not in page
    notices = [html.unescape(text) for text in re.findall('<p class="notice">(.*?)</p>', page)]
    assert [re.sub(r"line \d+", "line N", text) for text in notices] == [
        "The figure 'bare' is missing: mine.py: figure 'bare' must return a matplotlib Figure and its caption, "
        "got Figure",
        "The section 'raises' is missing: mine.py: SystemExit: no &\\n more (mine.py, line N)",
        "The section 'text' is missing: mine.py: section 'text' must return a markupsafe.Markup or None, got str",
        "The figure 'raises' is missing: mine.py: SystemExit: no &\\n more (mine.py, line N)",
    ]
    assert [re.sub(r": .*", "", said) for said in heard] == [
        *("figure 'bare' is left out of the report", "figure 'raises' is left out of the report"),
        *("section 'raises' is left out of the report", "section 'text' is left out of the report"),
    ]
    plots = {file.name for file in (tmp_path / "report" / "plots").iterdir()}
    assert {"bars.svg", "bars.png", "dots.2.svg", "dots.2.png", "accuracy.svg"} <= plots
    assert not any(name.startswith(("bare", "raises")) for name in plots)
    in_wins = page[page.index('id="wins"') : page.index('id="more-wins"')]
    assert "How many." in in_wins
    # They got copies of the tables.
    assert set(pd.read_csv(tmp_path / "report" / "trials.csv")["label"]) == {"none", "kd"}


def test_a_results_folder_is_reported_with_the_plugins_that_its_plan_names(
    runs: Callable[..., Any], plugin: Path, tmp_path: Path
) -> None:
    folder = write(runs, sections=["wins"], plugins=[str(plugin)])
    heard: list[str] = []
    page = render(folder, tmp_path / "report", plots=False, warn=heard.append).read_text(encoding="utf-8")
    assert "<p>kd wins often</p>" in page
    assert heard == []
    plugin.unlink()
    page = render(folder, tmp_path / "report", plots=False, warn=heard.append).read_text(encoding="utf-8")
    assert "<p>kd wins often</p>" not in page
    assert headings(page)[-1] == "wins"
    assert heard[0] == f"plugin file {plugin}: not found"
    assert heard[1].startswith("section 'wins' is left out of the report: section 'wins' is not registered")


def test_a_changed_plugin_makes_the_report_out_of_date(runs: Callable[..., Any], plugin: Path, tmp_path: Path) -> None:
    folder = write(runs, sections=["wins"])
    before = made_from.digest(folder, parts=parts(folder, plugin))
    assert made_from.digest(folder, parts=parts(folder, plugin)) == before
    missing = made_from.digest(folder, parts=parts(folder))
    plugin.write_text(PLUGIN.replace("often", "always"))
    assert len({before, missing, made_from.digest(folder, parts=parts(folder, plugin))}) == 3


def test_a_report_without_additions_loads_no_installed_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.discovery.discover", lambda: pytest.fail("looked for plugins"))
    found = parts_of(PlanRecord(protocol=2, suite={"sections": [], "figures": []}))
    assert [part.name for part in found.sections][:2] == ["verdict", "overall"]
    assert all(part.built_in for part in (*found.sections, *found.figures))
    assert found.to_json() == []


def test_a_metric_is_shown_without_its_plugin(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0, metrics={"gap": 0.25})
    suite.done("resnet20", "resnet8", "none", 1, 71.0)
    suite.done("resnet20", "resnet8", "kd", 0, 72.0, unmeasured={"gap": "ValueError: no <good>"})
    suite.tables["metrics"] = ["gap"]
    shown = ShownMetric(name="gap", heading="Gap <1>", unit="nats", digits=1)
    folder = suite.write(metrics=(shown,))
    path = render(folder, tmp_path / "report", plots=False)
    page = path.read_text(encoding="utf-8")
    assert '<button type="button">Gap &lt;1&gt;, nats</button>' in page
    assert re.search(r'data-value="0.25">\s*0.2 <span class="n">n=1</span></td>', page)
    assert '<td class="number " data-value="">–</td>' in page
    assert "Gap &lt;1&gt;: missing in 1 of 3 trials: ValueError: no &lt;good&gt;." in page
    assert (
        "missing in 1 of 3 trials: not measured: the trial finished before the metric was added to the suite." in page
    )
    assert list(pd.read_csv(path.parent / "trials.csv")["gap"].fillna(-1)) == [0.25, -1, -1]
    board = pd.read_csv(path.parent / "leaderboard.csv").set_index("label")
    assert board["gap_mean"].fillna(-1).to_dict() == {"none": 0.25, "kd": -1}
    assert list(board.columns).index("gap_mean") == list(board.columns).index("kl_to_teacher_mean") + 1


def test_a_plan_of_other_hands_names_no_file(runs: Callable[..., Any], tmp_path: Path) -> None:
    folder = write(runs, figures=["../kept"])
    report = tmp_path / "report"
    report.mkdir()
    (report / "kept.svg").write_text("mine")
    heard: list[str] = []
    page = render(folder, report, warn=heard.append).read_text(encoding="utf-8")
    assert (report / "kept.svg").read_text() == "mine"
    assert heard[0].startswith("figure '../kept' is left out of the report: figure '../kept' is not registered")
    assert headings(page)[-1] == "further-figures"
