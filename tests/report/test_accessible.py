"""Contrasts, names for screen readers, and what is reachable without a mouse."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from kdbench.report.figures.canvas import DOWN, FAINT, SOFT, TEXT, UP
from kdbench.report.render import FULL_SHADE, render
from kdbench.report.styles import INK, NEUTRAL, PALETTE
from kdbench.results import SuiteFolder

Colour = tuple[float, ...]
CSS = (files("kdbench.report") / "templates" / "style.css").read_text(encoding="utf-8")
TEXTS, MARKS = 4.5, 3.0
"""The least contrasts of WCAG 2.2, level AA: of text, and of what must be seen in a drawing."""


def variables(theme: str) -> dict[str, str]:
    """The colours of a theme; the dark one changes those of the light one."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    assert len(blocks) == 2
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6}|[\d ]+);", block)) for block in blocks)
    return light if theme == "light" else {**light, **dark}


def parsed(text: str) -> Colour:
    if text.startswith("#"):
        return tuple(int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return tuple(int(part) / 255 for part in text.split())


def luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: Colour, other: Colour) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def shaded(colour: Colour, paper: Colour) -> Colour:
    return tuple(FULL_SHADE * c + (1 - FULL_SHADE) * p for c, p in zip(colour, paper, strict=True))


def test_contrast_of_known_colours() -> None:
    assert contrast(parsed("#000000"), parsed("#ffffff")) == pytest.approx(21)
    # The example of WebAIM's checker.
    assert contrast(parsed("#0000ff"), parsed("#ffffff")) == pytest.approx(8.59, abs=0.01)
    assert contrast(parsed("#56b4e9"), parsed("#ffffff")) < MARKS


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "soft", "link", "up", "down"])
def test_text_has_contrast(theme: str, name: str) -> None:
    colours = variables(theme)
    for ground in ("paper", "card"):
        assert contrast(parsed(colours[name]), parsed(colours[ground])) >= TEXTS


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("shade", ["up", "down"])
def test_text_on_the_strongest_shade_has_contrast(theme: str, shade: str) -> None:
    colours = variables(theme)
    ground = shaded(parsed(colours[f"{shade}-rgb"]), parsed(colours["paper"]))
    for name in ("ink", shade):
        assert contrast(parsed(colours[name]), ground) >= TEXTS
    # What is written there in small letters is not in the soft colour of other tables.
    assert ".matrix tbody td .std, .matrix tbody td .unresolved { color: var(--ink); }" in CSS


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_methods_and_lines_have_contrast(theme: str) -> None:
    colours = variables(theme)
    own = [colours[name] for name in ("method-ink", "method-neutral", "faint", "soft", "up", "down")]
    for colour in (*PALETTE, *own):
        for ground in ("paper", "card"):
            assert contrast(parsed(colour), parsed(colours[ground])) >= MARKS, (colour, ground)


def test_files_of_figures_have_contrast() -> None:
    white = parsed("#ffffff")
    assert all(contrast(parsed(colour), white) >= MARKS for colour in (*PALETTE, INK, NEUTRAL, FAINT))
    assert all(contrast(parsed(colour), white) >= TEXTS for colour in (TEXT, SOFT, UP, DOWN))


class Elements(HTMLParser):
    """All elements with their attributes, and those around each table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str]]] = []
        self.around: dict[str, list[list[dict[str, str]]]] = {"table": [], "svg": []}
        self._open: list[dict[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.all.append((tag, found))
        if tag in self.around:
            self.around[tag].append(list(self._open))
        if tag not in {"meta", "br"}:
            self._open.append(found)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()


@pytest.fixture(scope="module")
def page(untouched_study: SuiteFolder, tmp_path_factory: pytest.TempPathFactory) -> Elements:
    path: Path = render(untouched_study, tmp_path_factory.mktemp("reports"))
    return Elements(path.read_text(encoding="utf-8"))


def test_what_scrolls_is_reached_by_keyboard_and_has_a_name(page: Elements) -> None:
    areas = [found for _, found in page.all if found.get("class") == "scroll"]
    assert len(areas) == len(page.around["table"]) + 4
    assert all((area["tabindex"], area["role"]) == ("0", "region") for area in areas)
    names = [area["aria-label"] for area in areas]
    assert len(set(names)) == len(names)
    assert {"Results: resnet20 → resnet8", "Figure: accuracy", "All methods over all pairs"} <= set(names)


def test_all_tables_and_figures_scroll_alone(page: Elements) -> None:
    for around in page.around["table"]:
        assert around[-1].get("class") == "scroll"
    drawn = [around for around in page.around["svg"] if any(one.get("class") == "plot" for one in around)]
    assert len(drawn) == 4
    assert all(around[-1].get("class") == "scroll" for around in drawn)


def test_no_words_are_inside_what_scrolls_or_in_a_tooltip_only(page: Elements) -> None:
    assert not [tag for tag, found in page.all if tag == "caption" or "title" in found]
    identifiers = {found["id"] for _, found in page.all if "id" in found}
    described = [found["aria-describedby"] for _, found in page.all if "aria-describedby" in found]
    assert len(described) >= 3
    assert set(described) <= identifiers


def test_the_drawing_of_a_row_is_named_by_its_numbers(page: Elements) -> None:
    names = [found["aria-label"] for tag, found in page.all if tag == "svg" and found.get("class") == "strip"]
    assert len(names) == len(set(names)) == 9
    seeds = "seeds 72.00, 72.50 and 73.50; mean of none 71.00"
    assert f"resnet20 → resnet8, kd: mean 72.67 %, standard deviation 0.76; {seeds}" in names
    assert "resnet20 → resnet14, kd: mean 76.00 %; seeds 76.00; mean of none 75.00" in names


def test_figures_have_words(page: Elements) -> None:
    images = [found for tag, found in page.all if tag == "svg" and found.get("role") == "img"]
    assert all(len(found["aria-label"]) > 20 for found in images)
