"""Labels that a reader has asked to mark."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import SuiteError
from kdbench.report.figures import canvas
from kdbench.report.figures.accuracy import accuracy
from kdbench.report.figures.cost import cost
from kdbench.report.figures.curves import curves
from kdbench.report.figures.ranks import critical_difference
from kdbench.report.figures.training import terms
from kdbench.report.made_from import digest
from kdbench.report.render import render
from kdbench.report.study import Study, read_study
from kdbench.results import SuiteFolder

TAG = '<span class="tag own">★ highlighted</span>'


@pytest.fixture(scope="module")
def read(untouched_study: SuiteFolder) -> Study:
    return read_study(untouched_study, highlight=["vid"])


def test_every_table_marks_the_row_in_words(untouched_study: SuiteFolder, tmp_path: Path) -> None:
    html = render(untouched_study, tmp_path, highlight=["vid"], plots=False).read_text(encoding="utf-8")
    rows = re.findall(r'<span class="method">.*?</span>\n?', html.replace(TAG, "TAG"), flags=re.DOTALL)
    marked = [row for row in rows if "TAG" in row]
    assert marked == [row for row in rows if "</svg>vid" in row]
    # All pairs, each pair's result, other metrics, cost, settings; vid is in one of two pairs.
    assert len(marked) >= 6
    assert "★ Highlighted: vid" in html
    board = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert board.count("| vid **(highlighted)** |") == 2
    assert "kd **(highlighted)**" not in board


def test_without_the_option_nothing_is_marked(untouched_study: SuiteFolder, tmp_path: Path) -> None:
    html = render(untouched_study, tmp_path, plots=False).read_text(encoding="utf-8")
    assert "★" not in html
    assert "highlighted" not in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


def test_several_in_the_order_of_the_suite(untouched_study: SuiteFolder) -> None:
    assert read_study(untouched_study, highlight=["vid", "kd", "vid"]).highlighted == ("kd", "vid")


def test_an_unknown_label_is_refused_with_the_one_that_was_meant(untouched_study: SuiteFolder, tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as raised:
        render(untouched_study, tmp_path, highlight=["vdi", "kd"])
    assert str(raised.value) == "--highlight vdi: no label of the methods shown; did you mean 'vid'?"
    assert not list(tmp_path.iterdir())
    with pytest.raises(SuiteError) as raised:
        render(untouched_study, tmp_path, highlight=["vid"], methods=["kd"])
    assert str(raised.value) == "--highlight vid: no label of the methods shown; known: kd"


def test_a_report_with_other_marks_is_not_current(untouched_study: SuiteFolder) -> None:
    found = [digest(untouched_study, highlight=labels) for labels in ((), ("kd",), ("vid",), ("kd", "vid"))]
    assert len(set(found)) == 4
    assert digest(untouched_study, highlight=("vid", "kd")) == found[-1]


def _rings(axes: Any) -> list[tuple[float, float]]:
    return [
        tuple(point)
        for dots in axes.collections
        if type(dots).__name__ == "PathCollection" and list(dots.get_sizes()) == [120]
        for point in dots.get_offsets()
    ]


def test_curves_draw_a_thicker_line_above_the_others(read: Study) -> None:
    made = curves(read)
    assert made is not None
    widths = {line.get_color(): (line.get_linewidth(), line.get_zorder()) for line in made[0].axes[0].lines}
    own = widths.pop(read.styles["vid"].colour)
    assert own == (canvas.BOLD, 4)
    assert set(widths.values()) == {(1.4, 2)}
    texts = [text.get_text() for text in made[0].legends[0].get_texts()]
    assert "★ vid" in texts
    assert "kd" in texts


def test_points_have_a_ring_and_a_star(read: Study) -> None:
    for figure in (cost(read), accuracy(read)):
        assert figure is not None
        # Vid is in the first of two pairs.
        assert [len(_rings(axes)) for axes in figure[0].axes] == [1, 0]
    made = accuracy(read)
    assert made is not None
    assert "★ vid" in [text.get_text() for text in made[0].axes[0].get_yticklabels()]
    panels = terms(read)
    assert panels is not None
    assert "★ vid" in [axes.get_title() for axes in panels[0].axes]


def test_the_diagram_of_ranks_marks_it(runs: Callable[..., Any]) -> None:
    suite = runs("many")
    for index in range(6):
        suite.teacher(f"teacher{index}", 80.0)
        for offset, label in enumerate(("none", "kd", "vid")):
            suite.done(f"teacher{index}", "resnet8", label, 0, 70.0 + offset)
    made = critical_difference(read_study(suite.write(), highlight=["kd"]))
    assert made is not None
    axes = made[0].axes[0]
    assert [x for x, _ in _rings(axes)] == [2.0]
    assert "★ kd  2.00" in {text.get_text().strip() for text in axes.texts}


def test_one_of_many_methods_is_not_among_the_grey_ones(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for index in range(30):
        label = {0: "none", 1: "kd"}.get(index, f"method{index}")
        suite.done("resnet20", "resnet8", label, 0, 60.0 + index)
    made = curves(read_study(suite.write(), highlight=["method2"]))
    assert made is not None
    assert "★ method2" in {text.get_text() for text in made[0].legends[0].get_texts()}
