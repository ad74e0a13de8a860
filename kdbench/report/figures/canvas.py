"""Shared by all figures: colours, panels, legends, saving, and embedding in the page.

Only matplotlib's object-oriented interface is used, which changes no global state.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from kdbench.report.resolution import Resolution
from kdbench.report.study import Study
from kdbench.report.styles import INK, NEUTRAL
from kdbench.results import write_atomically

# Distinct values, so that the page can replace each by a colour of its theme.
TEXT, SOFT, GRID, PAPER = "#1c1c1d", "#5c5c5e", "#e4e4e2", "#fffffe"
UP, DOWN = "#084a75", "#963e00"
FAINT = "#8a8a8b"
THEME = {
    UP: "var(--up)",
    DOWN: "var(--down)",
    FAINT: "var(--faint)",
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
    # Fixed, because there are no ticks above a panel to look for: that takes a tenth of the time of a figure.
    "axes.titley": 1.0,
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
Numbers = np.ndarray[Any, np.dtype[np.float64]]
POINTS = 80
"""Largest number of epochs drawn of a curve; the last one is always drawn."""
WIDTH = 12.5
NARROW = 8.5
LABELLED = 8
"""With more methods, only the best ones and the baselines are labelled."""
BOLD = 3.0
"""Width of the line of a highlighted method."""


def inline(svg: str, name: str, caption: str) -> str:
    """Prepare an SVG file for embedding: unique identifiers, the colours and font of the page, a text alternative."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    # Matplotlib names every element; few names are referred to.
    used = {one or other for one, other in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body)}
    # Only tags: names of methods between them are text, whatever they look like.
    body = re.sub(r"<[^<>]*>", lambda tag: _embedded(tag[0], name, used), body)
    body = re.sub(r">\s+<", "><", body).replace("<g></g>", "").replace("<g/>", "")
    text = caption.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    width = re.search(r'<svg [^>]*width="([\d.]+pt)"', body)
    style = f' style="--width: {width[1]}"' if width else ""
    return body.replace("<svg", f'<svg role="img" aria-label="{text}"{style}', 1)


def _embedded(tag: str, name: str, used: Collection[str]) -> str:
    """A tag as the page has it."""
    tag = _IDENTIFIER.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", tag)
    if "#" in tag:
        tag = _REFERENCE.sub(rf"\1#{name}-", tag)
        tag = _COLOURS.sub(lambda found: THEME[found[0]], tag)
    if "xlink" in tag or "xmlns" in tag:
        # Without namespace declarations, the page contains no URLs that look like external resources.
        tag = _NAMESPACE.sub("", tag).replace("xlink:href", "href")
    if "<text" in tag:
        tag = _UPRIGHT.sub("", tag.replace("'DejaVu Sans'", "var(--sans)"))
    # Two decimals are precise enough for any screen.
    tag = _DECIMALS.sub(r"\1", tag)
    return _POLYLINE.sub(_shorter, tag)


_COLOURS = re.compile("|".join(THEME))
_IDENTIFIER = re.compile(r' id="([^"]+)"')
_REFERENCE = re.compile(r'(\bhref="|\burl\()#')
_NAMESPACE = re.compile(r' xmlns(:xlink)?="[^"]*"')
_UPRIGHT = re.compile(r' transform="rotate\(-?0 [^"]*"')
_DECIMALS = re.compile(r"(\.\d\d)\d\d+")
_POLYLINE = re.compile(r'\bd="((?:[ML] [-.\d]+ [-.\d]+ \n?){8,}(?:z\n?)?)"')


def _shorter(path: re.Match[str]) -> str:
    """A long path of straight lines with relative coordinates in tenths of a point: less than half the characters."""
    text = path[1]
    pieces = []
    for piece in text.removesuffix("\n").removesuffix("z").split("M ")[1:]:
        points = [tuple(round(10 * float(value)) for value in point.split()) for point in piece.split("L ")]
        steps = [_tenths(x1 - x0) + _tenths(y1 - y0) for (x0, y0), (x1, y1) in pairwise(points)]
        x, y = points[0]
        pieces.append(f"M{_tenths(x)}{_tenths(y)}l{''.join(steps)}")
    return f'd="{"".join(pieces)}{"z" if "z" in text else ""}"'


def _tenths(value: int) -> str:
    """A number of tenths, with what separates it from a number before it."""
    whole, tenth = divmod(abs(value), 10)
    return f"{'-' if value < 0 else ' '}{whole if whole or not tenth else ''}{f'.{tenth}' if tenth else ''}"


def panels(
    count: int, columns: int, height: float, *, width: float, sharey: bool = False, right: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A grid of panels; those after ``count`` stay empty. ``right``: a margin as a share of the width."""
    rows = -(-count // columns)
    figure = Figure(figsize=(width, rows * height + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(w_pad=0.1, h_pad=0.08, rect=(0, 0, 1 - right, 1))
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


_ANYWHERE = (0.0, 0.0)
"""The place of an empty label. Otherwise matplotlib measures all tick labels to find one, each time it draws."""


def axis_labels(panels: Sequence[Axes], columns: int, below: str, left: str) -> None:
    """Label the outer panels' axes."""
    for index, axes in enumerate(panels):
        # The lowest panel of each column, as the last row may not be full.
        if index + columns >= len(panels):
            axes.set_xlabel(below)
        else:
            axes.xaxis.set_label_coords(*_ANYWHERE)
        if index % columns == 0:
            axes.set_ylabel(left)
        else:
            axes.yaxis.set_label_coords(*_ANYWHERE)


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


class Curve(NamedTuple):
    """A column by epoch, over the seeds that have a value; NaN where none has."""

    epochs: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    seeds: int
    """Rows of each epoch."""


def over_seeds(records: pd.DataFrame, name: str) -> Curve:
    """Mean, minimum and maximum of a column over seeds, by epoch; at most :data:`POINTS` epochs of a longer curve.

    If a seed ended early, the mean over the others would jump: the curve ends at the last epoch that all seeds have.
    """
    # Not with pandas's groupby: a large suite has thousands of curves, and each takes milliseconds there.
    order = np.argsort(records["epoch"].to_numpy(), kind="stable")
    epochs, starts, sizes = np.unique(records["epoch"].to_numpy()[order], return_index=True, return_counts=True)
    values = records[name].to_numpy(dtype=np.float64)[order]
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(known, values, 0.0), starts) / np.add.reduceat(known, starts, dtype=np.int64)
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    shared = np.flatnonzero(sizes == sizes[0])
    step = -(-len(shared) // POINTS)
    # Count from the end, because the last epoch is the reported one.
    shown = shared[(len(shared) - 1) % step :: step]
    return Curve(epochs[shown], mean[shown], low[shown], high[shown], int(sizes[0]))


def joined(lines: Iterable[tuple[Numbers, Numbers]]) -> tuple[Numbers, Numbers]:
    """Several lines of the same look as one, with a gap between each: drawn faster, and smaller in a file."""
    gap = np.array([np.nan])
    parts = [(np.append(x, gap), np.append(y, gap)) for x, y in lines]
    return np.concatenate([x for x, _ in parts])[:-1], np.concatenate([y for _, y in parts])[:-1]


def labelled(study: Study, drawn: Collection[str]) -> tuple[list[str], list[str]]:
    """The labels that a figure of many lines names, best first, and the others, which it draws in grey."""
    ordered = [standing.label for standing in study.overall.standings if standing.label in drawn]
    if len(ordered) <= LABELLED + 1:
        return ordered, []
    baselines = [baseline.label for baseline in study.baselines if baseline.label in ordered]
    best = [label for label in ordered if label not in baselines][: LABELLED - len(baselines)]
    named = [label for label in ordered if label in {*baselines, *best, *study.highlighted}]
    return named, [label for label in ordered if label not in named]


def set_names(made: Legend, names: Sequence[str]) -> None:
    """Name a legend's entries; matplotlib itself leaves out names that begin with an underscore."""
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(name)


STAR = "★"


def shown_as(study: Study, label: str) -> str:
    """A method's name in a figure; a highlighted one has a star."""
    return f"{STAR} {label}" if label in study.highlighted else label


def ring(axes: Axes, x: float, y: float, **where: Any) -> None:
    """Draw a ring around the marker of a highlighted method."""
    axes.scatter([x], [y], s=120, marker="o", facecolors="none", edgecolors=TEXT, linewidths=1.4, **where)


def marker(study: Study, label: str, linestyle: Literal["none", "-"] = "none") -> Line2D:
    """A method's entry in a legend."""
    style = study.styles[label]
    return Line2D(
        [],
        [],
        color=style.colour,
        marker=style.marker,
        linestyle=linestyle,
        markersize=5.5,
        label=shown_as(study, label),
        linewidth=BOLD if label in study.highlighted else 1.5,
    )


# No triangles: those are markers of methods.
_ARROW = Outline(
    [(0, -1), (0, 1), (-0.7, 0.2), (0, 1), (0.7, 0.2)],
    [Outline.MOVETO, Outline.LINETO, Outline.MOVETO] + [Outline.LINETO] * 2,
)


def _question_mark() -> Outline:
    # Not "$?$": parsing of mathematics is off.
    drawn = TextPath((0, 0), "?", size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = drawn.get_extents()
    return drawn.transformed(Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2))


RESOLUTIONS: dict[Resolution, tuple[Any, str]] = {
    Resolution.BETTER: (_ARROW, UP),
    Resolution.WORSE: (_ARROW.transformed(Affine2D().rotate_deg(180)), DOWN),
    Resolution.NOT_RESOLVED: ("o", SOFT),
    Resolution.NO_INTERVAL: (_question_mark(), SOFT),
}
"""The marker and the colour of what is known of a difference; the same shapes as in the tables."""
RESOLUTION_WORDS = "Marks: " + ", ".join(f"{state.mark} {state.meaning}" for state in RESOLUTIONS) + "."


def mark_resolution(axes: Axes, state: Resolution, x: Sequence[float], y: Sequence[float], **where: Any) -> None:
    """Draw the mark of a state at the points."""
    shape, colour = RESOLUTIONS[state]
    axes.scatter(
        x, y, s=18 if shape == "o" else 30, marker=shape, linewidths=_edge(state),
        facecolors="none" if shape == "o" else colour, edgecolors=colour, **where,
    )  # fmt: skip


def _edge(state: Resolution) -> float:
    # The question mark is a filled letter.
    return 0.0 if state is Resolution.NO_INTERVAL else 1.1


def resolution_legend(found: Iterable[Resolution | None]) -> list[Line2D]:
    """Entries of a legend for the marks that occur."""
    occurring = set(found)
    return [
        Line2D(
            [], [], linestyle="none", marker=shape, markersize=5, color=colour, label=state.value,
            markerfacecolor="none" if shape == "o" else colour, markeredgewidth=_edge(state),
        )
        for state, (shape, colour) in RESOLUTIONS.items() if state in occurring
    ]  # fmt: skip


def layout(figure: Figure) -> None:
    """Give the panels their final sizes, once for both formats: with many panels, this takes most of the time."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        # Not "none", with which matplotlib draws the figure twice for each format.
        figure.set_layout_engine(None)


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem.svg`` and ``stem.png``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    layout(figure)
    saves: Iterable[tuple[str, dict[str, object]]] = (
        ("svg", {"metadata": {"Date": None}}),
        # Compressed a little less than by default: in half the time.
        ("png", {"dpi": 200, "pil_kwargs": {"compress_level": 4}}),
    )
    for suffix, options in saves:
        write_atomically(
            stem.with_name(f"{stem.name}.{suffix}"),
            lambda path, suffix=suffix, options=options: figure.savefig(path, format=suffix, **options),  # type: ignore[misc]
        )
