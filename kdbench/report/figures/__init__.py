"""The figures, for the page and for papers: each is drawn once and saved as SVG and PNG. One module a figure.

Only this package knows matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from kdbench.report.figures.accuracy import accuracy
from kdbench.report.figures.canvas import SETTINGS, inline, save
from kdbench.report.figures.cost import cost
from kdbench.report.figures.curves import curves
from kdbench.report.figures.ranks import critical_difference
from kdbench.report.figures.training import stages, terms
from kdbench.report.study import Study


@dataclass(frozen=True)
class Drawing:
    """A figure as the page shows it."""

    svg: str
    caption: str


FIGURES: dict[str, Callable[[Study], tuple[Figure, str] | None]] = {
    "accuracy": accuracy,
    "curves": curves,
    "terms": terms,
    "stages": stages,
    "cost": cost,
    "critical_difference": critical_difference,
}


def draw(study: Study, folder: Path) -> dict[str, Drawing]:
    """Draw what the results allow, write ``folder/<name>.svg`` and ``.png``, and return the page's drawings.

    Names: ``accuracy``, ``curves``, ``terms``, ``stages``, ``cost``, ``critical_difference``.
    """
    drawings = {}
    with matplotlib.rc_context(SETTINGS):
        for name, make in FIGURES.items():
            made = make(study)
            if made is None:
                for suffix in ("svg", "png"):
                    (folder / f"{name}.{suffix}").unlink(missing_ok=True)
                continue
            figure, caption = made
            save(figure, folder / name)
            text = (folder / f"{name}.svg").read_text(encoding="utf-8")
            drawings[name] = Drawing(inline(text, name, caption), caption)
    return drawings
