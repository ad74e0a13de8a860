"""Shared by all figures: colours, panels, legends, saving, and embedding in the page.

Only matplotlib's object-oriented interface is used, which changes no global state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from kdbench.report.study import Study
from kdbench.report.styles import INK, NEUTRAL
from kdbench.results import write_atomically

# Distinct values, so that the page can replace each by a colour of its theme.
TEXT, SOFT, GRID, PAPER = "#1c1c1d", "#5c5c5e", "#e4e4e2", "#fffffe"
THEME = {
    TEXT: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    INK: "var(--method-ink)",
    NEUTRAL: "var(--method-neutral)",
}
SETTINGS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "kdbench",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    # Names are text, even with dollar signs.
    "text.parse_math": False,
}
POINTS = 80
"""Approximate number of epochs drawn of a longer curve; the last one is always drawn."""
WIDTH = 12.5
NARROW = 8.5


def inline(svg: str, name: str, caption: str) -> str:
    """Prepare an SVG file for embedding: unique identifiers, the colours and font of the page, a text alternative."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    # Remove namespace declarations, so that the page contains no URLs that look like external resources.
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body).replace("xlink:href", "href")
    body = body.replace("'DejaVu Sans'", "var(--sans)")
    # Two decimals are precise enough for any screen, and halve the size of the page.
    body = re.sub(r"(\.\d\d)\d\d+", r"\1", body)
    for colour, themed in THEME.items():
        body = body.replace(colour, themed)
    text = caption.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return body.replace("<svg", f'<svg role="img" aria-label="{text}"', 1)


def panels(count: int, columns: int, height: float, *, width: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A grid of panels; those after ``count`` stay empty."""
    rows = -(-count // columns)
    figure = Figure(figsize=(width, rows * height + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(w_pad=0.1, h_pad=0.08)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def axis_labels(panels: Sequence[Axes], columns: int, below: str, left: str) -> None:
    """Label the outer panels' axes."""
    for index, axes in enumerate(panels):
        # The lowest panel of each column, as the last row may not be full.
        if index + columns >= len(panels):
            axes.set_xlabel(below)
        if index % columns == 0:
            axes.set_ylabel(left)


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """One legend below all panels."""
    names = [str(handle.get_label()) for handle in handles]
    # Width in inches of a handle and its name at 8 points.
    needed = 0.6 + 0.075 * max(map(len, names))
    columns = min(len(handles), max(1, int(figure.get_figwidth() / needed)))
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(handles) // columns))
    made = figure.legend(
        handles=list(handles),
        labels=["name"] * len(names),
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        handletextpad=0.5,
        columnspacing=1.4,
    )
    set_names(made, names)


def over_seeds(records: pd.DataFrame, name: str) -> pd.DataFrame:
    """Size, mean, minimum and maximum of a column over seeds, by epoch; about :data:`POINTS` epochs of a longer curve.

    If a seed ended early, the mean over the others would jump: the curve ends at the last epoch that all seeds have.
    """
    by_epoch = records[name].astype("float64").groupby(records["epoch"]).agg(["size", "mean", "min", "max"])
    shown = by_epoch[by_epoch["size"] == by_epoch["size"].iloc[0]]
    step = max(1, len(shown) // POINTS)
    # Count from the end, because the last epoch is the reported one.
    return shown.iloc[(len(shown) - 1) % step :: step]


def set_names(made: Legend, names: Sequence[str]) -> None:
    """Name a legend's entries; matplotlib itself leaves out names that begin with an underscore."""
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(name)


def marker(study: Study, label: str, linestyle: Literal["none", "-"] = "none") -> Line2D:
    """A method's entry in a legend."""
    style = study.styles[label]
    return Line2D([], [], color=style.colour, marker=style.marker, linestyle=linestyle, markersize=5.5, label=label)


def layout(figure: Figure) -> None:
    """Give the panels their final sizes, without drawing them."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem.svg`` and ``stem.png``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Compute the layout once for both formats: with many panels, it takes most of the time.
    layout(figure)
    # Not "none", with which matplotlib draws the figure twice for each format.
    figure.set_layout_engine(None)
    saves: Iterable[tuple[str, dict[str, object]]] = (
        ("svg", {"metadata": {"Date": None}}),
        ("png", {"dpi": 200}),
    )
    for suffix, options in saves:
        write_atomically(
            stem.with_name(f"{stem.name}.{suffix}"),
            lambda path, suffix=suffix, options=options: figure.savefig(path, format=suffix, **options),  # type: ignore[misc]
        )
