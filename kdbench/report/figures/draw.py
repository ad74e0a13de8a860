"""Draws and saves the figures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kdbench.errors import PluginError
from kdbench.hookspecs import FigureSpec
from kdbench.report.figures.canvas import SETTINGS, STAR, inline, save
from kdbench.report.parts import PagePart
from kdbench.report.study import Study


@dataclass(frozen=True)
class Drawing:
    """A figure for the page."""

    svg: str
    caption: str


def draw(
    study: Study, folder: Path, figures: Sequence[PagePart[FigureSpec]]
) -> tuple[dict[str, Drawing], dict[str, str]]:
    """Draw what the results allow, write ``folder/<name>.svg`` and ``.png``, and return the page's drawings by name.

    The second dictionary contains, by name, why the figure of a plugin could not be drawn.
    """
    drawings: dict[str, Drawing] = {}
    failed: dict[str, str] = {}
    for part in figures:
        drawing = None
        # Reset the settings for each figure, because a plugin may change them.
        with matplotlib.rc_context(SETTINGS):
            try:
                note = f" {STAR}: highlighted." if study.highlighted and part.built_in else ""
                drawing = part(study, partial(_saved, folder / part.name, note))
            except PluginError as error:
                failed[part.name] = str(error)
        if drawing is not None:
            drawings[part.name] = drawing
            continue
        # Without an offer, the name may be any text, so never use it as a path.
        for suffix in ("svg", "png") if part.offer is not None else ():
            (folder / f"{part.name}.{suffix}").unlink(missing_ok=True)
    return drawings, failed


def _saved(stem: Path, note: str, made: Any) -> Drawing | None:
    if made is None:
        return None
    figure, caption = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(figure, Figure) or not isinstance(caption, str):
        got = type(made).__name__
        raise PluginError(f"figure '{stem.name}' must return a matplotlib Figure and its caption, got {got}")
    save(figure, stem)
    # Not with_suffix: a name may contain dots.
    text = stem.with_name(f"{stem.name}.svg").read_text(encoding="utf-8")
    return Drawing(inline(text, stem.name, caption + note), caption + note)
