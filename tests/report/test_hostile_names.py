"""Names are text: in no file do they become formulas, markup or links."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from kdbench.report import escape
from kdbench.report.render import render

LABELS = (
    '=HYPERLINK("http://evil.example","x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)",
    "<script>alert(1)</script>", "</svg><img src=x onerror=alert(1)>", "[x](http://evil.example)",
    "![x](http://evil.example/x.png)", "**bold**", "`tick`", "~~gone~~", "_under_", "$\\frac{", "$x_1$", "a|b", "a\\|b",
    "# heading", "1. list", "- item", "[ref]: http://evil.example", "<!-- no comment", "&amp;", "]]>", "{{ 7 * 7 }}",
    "http://evil.example/x", "HTTPS://evil.example", "see www.evil.example", "$`x`$",
)  # fmt: skip
QUESTION = "=cmd|' /C calc'!A0 <img src=x onerror=\"alert(1)\"> [a](http://evil.example) **b**"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, module_runs: Callable[..., Any]) -> Path:
    suite = module_runs(tmp_path_factory.mktemp("hostile"))
    suite.tables["question"] = QUESTION
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0)
    for index, label in enumerate(LABELS):
        suite.done("resnet20", "resnet8", label, 0, 71.0 + index / 10, method="kd")
    suite.failed("resnet20", "resnet8", "vid", 0, "=1+1 <b>bold</b> | [x](http://evil.example)")
    return render(suite.write(), tmp_path_factory.mktemp("report"), methods=["*", "`a`|<b>"]).parent


@pytest.mark.parametrize("name", ["trials.csv", "leaderboard.csv", "overall.csv"])
def test_no_cell_is_a_formula(report: Path, name: str) -> None:
    with (report / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [cell for row in rows for cell in row.values()]
    for cell in cells:
        if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
            float(cell)
    labels = {row["label"].removeprefix("'") for row in rows}
    assert labels == {"none", "vid", *LABELS}


def test_teachers_and_networks_are_text_too(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    pairs = (("=1+1", "@SUM(A1)"), ("<img src=x>", "[x](http://evil.example)"), ("+1", "-2+3"))
    for teacher, student in pairs:
        suite.teacher(teacher, 80.0)
        for label, top1 in (("none", 70.0), ("@SUM(A1)", 71.0)):
            suite.done(teacher, student, label, 0, top1, method="none" if label == "none" else "kd")
    render(suite.write(), tmp_path)
    for name in ("trials.csv", "leaderboard.csv"):
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        cells = [cell for row in rows for cell in row.values()]
        assert not [cell for cell in cells if cell.startswith(("=", "@"))]
        assert {(row["teacher"].removeprefix("'"), row["student"].removeprefix("'")) for row in rows} == set(pairs)
    page = Elements((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "img" not in page.found
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse((tmp_path / "leaderboard.md").read_text())
    assert not {token.type for token in leaves(tokens)} & {"html_inline", "html_block", "link_open", "image"}


def leaves(tokens: list[Token]) -> list[Token]:
    return [leaf for token in tokens for leaf in (leaves(token.children) if token.children else [token])]


def test_markdown_shows_names_as_they_are(report: Path) -> None:
    tokens = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .parse((report / "leaderboard.md").read_text(encoding="utf-8"))
    )
    kinds = {token.type for token in leaves(tokens)}
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "em_open", "s_open"}
    assert [token.content for token in leaves(tokens) if token.type == "code_inline"] == ["--method * --method `a`|<b>"]
    # Two in bold, by the template: the verdict's title, and nothing of a name.
    bold = [after.content for token, after in pairwise(leaves(tokens)) if token.type == "strong_open"]
    assert bold == ["resnet20 → resnet8"]
    assert {token.tag for token in tokens if token.type == "heading_open"} == {"h1", "h2"}
    assert sum(token.type == "ordered_list_open" for token in tokens) == 0
    heading = tokens[1]
    assert "".join(leaf.content for leaf in heading.children or ()) == QUESTION
    cells = [
        "".join(leaf.content for leaf in after.children or ())
        for token, after in pairwise(tokens)
        if token.type == "td_open"
    ]
    assert len(cells) == 9 * (len(LABELS) + 2)
    assert {cells[i] for i in range(1, len(cells), 9)} == {"none", "vid", *LABELS}


def test_markdown_holds_no_mathematics_and_no_bare_link(report: Path) -> None:
    # Extensions of GitHub's, which begin in plain text.
    text = (report / "leaderboard.md").read_text(encoding="utf-8")
    assert "HTTPS:\\//evil.example" in text
    assert not re.findall(r"(?<!\\)\$|(?:https?|ftp)://|www\.", text, re.IGNORECASE)


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found[tag] = self.found.get(tag, 0) + 1
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_names_as_they_are(report: Path) -> None:
    page = Elements((report / "index.html").read_text(encoding="utf-8"))
    assert page.found["script"] == 1
    assert "img" not in page.found
    for label in LABELS:
        assert label in page.text
    assert QUESTION in page.text


def test_figures_show_names_as_they_are(report: Path) -> None:
    texts = {
        name: "".join(ElementTree.parse(report / "plots" / f"{name}.svg").getroot().itertext())
        for name in ("accuracy", "terms")
    }
    for label in LABELS:
        assert label in texts["accuracy"]
        assert label in texts["terms"]


def test_a_legend_names_what_begins_with_an_underscore(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label in ("none", "_mine"):
        suite.done("resnet20", "resnet8", label, 0, 70.0, terms=("_ce",))
    render(suite.write(), tmp_path)
    for name, expected in (("curves", "_mine"), ("cost", "_mine"), ("terms", "_ce")):
        assert expected in "".join(ElementTree.parse(tmp_path / "plots" / f"{name}.svg").getroot().itertext())


@pytest.mark.parametrize(("text", "expected"), [
    ("wrn_40_2", "wrn_40_2"), ("72.77 ± 0.99 % [+0.73, +2.80]", "72.77 ± 0.99 % [+0.73, +2.80]"),
    ("_x_", "\\_x\\_"), ("a|b", "a\\|b"), ("[a](b)", "\\[a\\](b)"), ("two\nlines", "two lines"), ("1. x", "1\\. x"),
    ("$x_1$", "\\$x_1\\$"), ("http://a.example", "http:\\//a.example"), ("www.a.example", "www\\.a.example"),
    ("a: b // c", "a: b // c"),
])  # fmt: skip
def test_markdown_escapes_no_more_than_it_must(text: str, expected: str) -> None:
    assert escape.markdown(text) == expected


@pytest.mark.parametrize("text", ["\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20SUM(A1)"])
def test_wide_letters_that_some_spreadsheets_read_as_formulas(text: str) -> None:
    assert escape.csv(pd.DataFrame({"label": [text]})) == f"label\n'{text}\n"
