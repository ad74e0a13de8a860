"""The page in a browser: sorting, a phone, print, and names that look like markup."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.report.parts import parts_of
from kdbench.report.render import render

sync_api = pytest.importorskip("playwright.sync_api", reason="needs kdbench[browser]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium")

HOSTILE = (
    "<script>document.title = 'changed'</script>", "<img src=x onerror=alert(1)>", "</svg><b>bold</b>", "&amp;",
    '" onmouseover="alert(1)', "<!-- no comment", "http://evil.example/x", "{{ 7 * 7 }}",
)  # fmt: skip
FIGURES = ("accuracy", "cost")
PHONE = {"width": 390, "height": 844}
LETTER_LANDSCAPE = {"width": 965, "height": 725}
"""Pixels inside the margins of the smaller of the usual papers."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, module_runs: Callable[..., Any]) -> Path:
    suite = module_runs(tmp_path_factory.mktemp("browser"))
    labels = ("none", "kd", *HOSTILE, *(f"method{index}" for index in range(6)))
    for pair in range(2):
        suite.teacher(f"teacher{pair}", 80.0)
        for index, label in enumerate(labels):
            # Not in the order of the labels.
            top1 = 70.0 + (7 * index + 3 * pair) % len(labels) / 10
            for seed in range(2 if index < 4 else 1):
                method = label if label in {"none", "kd"} else f"loss{index}"
                suite.done(f"teacher{pair}", "resnet8", label, seed, top1 + seed / 100, method=method)
    folder = suite.write()
    parts = parts_of(suite.record)
    # Two figures show what all of them do, and are drawn in a second.
    few = replace(parts, figures=tuple(figure for figure in parts.figures if figure.name in FIGURES))
    return render(folder, tmp_path_factory.mktemp("report"), highlight=["kd"], parts=few)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Chromium's sandbox does not start as root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Opens the report; whatever it reports, asks or requests fails the test."""
    unwanted: list[str] = []
    pages = []

    def go(**options: Any) -> Any:
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: unwanted.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: unwanted.append(f"error: {error}"))
        page.on("dialog", lambda dialog: unwanted.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: unwanted.append(request.url) if request.url != report.as_uri() else None)
        page.goto(report.as_uri())
        return page

    yield go
    for page in pages:
        page.close()
    assert unwanted == []


def column(page: Any, table: str, index: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr > :nth-child({index})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_sorting_by_click(visit: Callable[..., Any]) -> None:
    page, table = visit(), "#pair-1 table.sortable"
    heading = page.locator(f"{table} th", has_text="top-1, %")
    for expected, down in (("descending", True), ("ascending", False), ("descending", True)):
        heading.locator("button").click()
        tops = [float(text.split()[0]) for text in column(page, table, 3)]
        assert tops == sorted(tops, reverse=down)
        assert len(set(tops)) == 16
        assert heading.get_attribute("aria-sort") == expected
    page.locator(f"{table} th button", has_text="rank").click()
    assert page.locator(f"{table} th[aria-sort]").all_inner_texts() == ["rank"]


def test_sorting_by_keyboard(visit: Callable[..., Any]) -> None:
    page, table = visit(), "#pair-1 table.sortable"
    heading = page.locator(f"{table} th", has_text="method").first
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    values = page.locator(f"{table} tbody th").evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    assert values == sorted(values, key=str.lower)
    assert heading.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "descending"


def test_a_phone_scrolls_tables_and_figures_but_not_the_page(visit: Callable[..., Any]) -> None:
    page = visit(viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    widths = page.locator("figure svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert len(widths) == len(FIGURES)
    assert min(widths) > 550
    area = page.locator('[aria-label="Figure: accuracy"]')
    area.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")
    # The words about a table do not move with it.
    words = page.locator("#matrix-words")
    assert words.evaluate("one => one.getBoundingClientRect().right") <= PHONE["width"]
    assert page.locator(".scroll .caption, .scroll figcaption, caption").count() == 0


def test_print_has_all_headings_and_columns(visit: Callable[..., Any]) -> None:
    page = visit(viewport=LETTER_LANDSCAPE)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    # Chromium does not paint a button in a heading that it repeats.
    shown = page.locator("thead button").evaluate_all("all => all.map(one => getComputedStyle(one).display)")
    assert set(shown) == {"contents"}
    right = page.locator("table").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert max(right) <= LETTER_LANDSCAPE["width"]
    assert page.locator("details:not([open])").count() == 0


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs poppler-utils")
def test_a_table_has_its_headings_on_each_printed_page(visit: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    visit().pdf(path=path, prefer_css_page_size=True)
    text = subprocess.run(["pdftotext", "-layout", path, "-"], check=True, capture_output=True, text=True).stdout
    pages = text.split("\f")
    with_rows = [page for page in pages if " ms " in page]
    assert len(with_rows) > 1
    assert all("images/s" in page and "extra epochs" in page for page in with_rows)


def test_hostile_names_are_shown_as_text(visit: Callable[..., Any]) -> None:
    page = visit()
    labels = page.locator("#pair-1 .sortable tbody th .method").all_inner_texts()
    names = {label.removesuffix("★ highlighted").strip() for label in labels}
    assert {*HOSTILE, "none", "kd"} <= names
    assert page.title() == "digits – kdbench"
    assert page.locator("img, b, [onmouseover], [onerror]").count() == 0
    texts = page.locator('[aria-label="Figure: accuracy"] svg text').all_text_contents()
    assert set(HOSTILE) <= set(texts)


def test_the_highlighted_row_is_framed_and_named(visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="dark")
    rows = page.locator("#pair-1 .sortable tbody tr", has_text="★ highlighted")
    assert rows.count() == 1
    cell = rows.locator("th")
    assert cell.get_attribute("data-value") == "kd"
    assert cell.evaluate("one => getComputedStyle(one).borderTopWidth") == "2px"
