"""The figures, for the page and for papers: each is drawn once and saved as SVG and PNG.

Only this module knows matplotlib, and only its object-oriented interface: nothing here touches global state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from kdbench.report import stats, wording
from kdbench.report.labels import place_labels
from kdbench.report.strip import limits
from kdbench.report.study import Study
from kdbench.report.styles import INK, NEUTRAL, Style
from kdbench.results import write_atomically

# Each a colour of its own, so that the page can put its theme's in their place.
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
}
HIGHLIGHTED = 8
"""With more methods than this, learning curves name the best ones and the baselines only."""
NAMED = 12
"""In a cost panel with more points, only some are named in place."""
POINTS = 120
"""Of a longer curve about so many epochs are drawn, the last one always."""
WIDTH = 12.5
NARROW = 8.5


@dataclass(frozen=True)
class Drawing:
    """A figure as the page shows it."""

    svg: str
    caption: str


def draw(study: Study, folder: Path) -> dict[str, Drawing]:
    """Draw what the results allow, write ``folder/<name>.svg`` and ``.png``, and return the page's drawings.

    Names: ``accuracy``, ``curves``, ``cost``, ``critical_difference``.
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
            _save(figure, folder / name)
            text = (folder / f"{name}.svg").read_text(encoding="utf-8")
            drawings[name] = Drawing(inline(text, name, caption), caption)
    return drawings


def accuracy(study: Study) -> tuple[Figure, str] | None:
    """Top-1 by method: seeds, mean and standard deviation; a panel a pair."""
    pairs = _with_results(study)
    if not pairs:
        return None
    labels = [standing.label for standing in study.overall.standings]
    columns = min(3, len(pairs))
    figure, panels = _panels(
        len(pairs), columns, 0.6 + 0.2 * max(len(labels), 3), width=WIDTH if columns > 1 else NARROW, sharey=True
    )
    for axes, pair in zip(panels, pairs, strict=True):
        _accuracy_panel(axes, study, pair, labels)
    for axes in panels[::columns]:
        axes.set_yticks(range(len(labels)), labels)
    _axis_labels(panels, columns, "test top-1, %", "")
    return figure, (
        "Top-1 on the test set. A dot is a seed, the marker the mean, the bar one standard deviation. "
        f"Dashed line: mean of {study.none}. Dotted: the teacher, where it lies in the panel."
    )


def _accuracy_panel(axes: Axes, study: Study, pair: str, labels: Sequence[str]) -> None:
    done = study.done(pair)
    cells = study.pair(pair).set_index("label")
    base = _cell(cells, study.none, "top1_mean")
    low, high = limits(list(done["top1"]), [] if base is None else [base])
    teacher = study.teacher_top1(pair)
    # The teacher may widen the panel, but not so far that the methods become a line.
    if teacher is not None and high < teacher <= high + 0.6 * (high - low):
        high = teacher + 0.03 * (high - low)
    axes.set_xlim(low, high)
    if base is not None:
        axes.axvline(base, color=NEUTRAL, linestyle=(0, (4, 2)), linewidth=1)
    if teacher is not None and low <= teacher <= high:
        axes.axvline(teacher, color=TEXT, linestyle=(0, (1, 1.5)), linewidth=1)
    for row, label in enumerate(labels):
        if label not in cells.index:
            continue
        style, cell = study.styles[label], cells.loc[label]
        if cell["n"] == 0:
            states = [s for s in ("diverged", "failed", "skipped", "stale", "pending") if cell[s]]
            axes.annotate(
                " and ".join(states),
                (low, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=SOFT,
                fontsize=7,
            )
            continue
        mean = float(cell["top1_mean"])
        values = done.loc[done["label"] == label, "top1"]
        axes.scatter(values, [row] * len(values), s=11, color=style.colour, alpha=0.4, linewidths=0, clip_on=True)
        if low <= mean <= high:
            spread = None if pd.isna(cell["top1_std"]) else float(cell["top1_std"])
            axes.errorbar(
                mean, row, xerr=spread, color=style.colour, marker=style.marker, markersize=5.5, elinewidth=1.4,
                markeredgecolor=PAPER, markeredgewidth=0.6,
            )  # fmt: skip
        else:
            edge, side = (low, "left") if mean < low else (high, "right")
            arrow = f" ◂ {wording.number(mean, 1)}" if side == "left" else f"{wording.number(mean, 1)} ▸ "
            axes.text(edge, row, arrow, va="center", ha=side, color=style.colour, fontsize=7.5)
        if cell["diverged"]:
            text = f"{cell['diverged']} of {cell['n'] + cell['diverged']} diverged "
            axes.text(high, row, text, va="center", ha="right", color=SOFT, fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", linewidth=0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(study.title(pair))
    if teacher is not None:
        beyond = "" if low <= teacher <= high else (" →" if teacher > high else " ←")
        axes.set_title(
            f"teacher {wording.number(teacher)}{beyond}", loc="right", fontsize=7.5, weight="normal", color=SOFT
        )


def curves(study: Study) -> tuple[Figure, str] | None:
    """Test top-1 by epoch; a panel a pair."""
    records = study.curves
    records = records[(records["stage"] == "main") & records["top1"].notna()]
    pairs = [pair for pair in study.pairs if pair in set(records["pair"])]
    if not pairs:
        return None
    named, others = _highlighted(study, set(records["label"]))
    columns = min(3, len(pairs))
    figure, panels = _panels(len(pairs), columns, 3.1 if columns < 3 else 2.7, width=WIDTH if columns > 1 else NARROW)
    for axes, pair in zip(panels, pairs, strict=True):
        mine = records[records["pair"] == pair]
        by_label = {str(label): rows for label, rows in mine.groupby("label")}
        for label in others:
            if label in by_label:
                _curve(axes, by_label[label], Style(GRID, ""), 0.9)
        for label in named:
            if label in by_label:
                _curve(axes, by_label[label], study.styles[label], 1.4)
        last = int(mine["epoch"].max())
        settled = mine.loc[mine["epoch"] >= max(1, round(0.15 * last)), "top1"]
        axes.set_ylim(*limits(list(settled)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(study.title(pair))
    _axis_labels(panels, columns, "epoch", "test top-1, %")
    handles = [_marker(study, label, linestyle="-") for label in named]
    if others:
        handles.append(Line2D([], [], color=GRID, label="others", linewidth=1.8))
    _legend(figure, handles)
    return figure, "Test top-1 by epoch of the main stage: mean over seeds, and the range of seeds as a band. " + (
        "Named are the baselines and those that stand highest over all pairs; "
        f"{wording.plural(len(others), 'other')} in grey."
        if others
        else "Later epochs set the scale; the first ones may lie below it."
    )


def _curve(axes: Axes, records: pd.DataFrame, style: Style, width: float) -> None:
    by_epoch = records.groupby("epoch")["top1"].agg(["count", "mean", "min", "max"])
    # Where a seed ended early, the mean over the rest would jump: it is drawn as far as all seeds go.
    shown = by_epoch[by_epoch["count"] == by_epoch["count"].iloc[0]]
    step = max(1, len(shown) // POINTS)
    # Counted from the end, as the last epoch is the one that matters.
    shown = shown.iloc[(len(shown) - 1) % step :: step]
    if style.marker and shown["count"].iloc[0] > 1:
        axes.fill_between(shown.index, shown["min"], shown["max"], color=style.colour, alpha=0.13, linewidth=0)
    gap = max(1, len(shown) // 6)
    axes.plot(
        shown.index, shown["mean"], color=style.colour, linewidth=width, marker=style.marker or None, markersize=4.5,
        markeredgecolor=PAPER, markeredgewidth=0.5, markevery=((len(shown) - 1) % gap, gap),
    )  # fmt: skip


def _highlighted(study: Study, drawn: Collection[str]) -> tuple[list[str], list[str]]:
    ordered = [standing.label for standing in study.overall.standings if standing.label in drawn]
    if len(ordered) <= HIGHLIGHTED + 1:
        return ordered, []
    baselines = [label for label in (study.none, study.kd) if label in ordered]
    best = [label for label in ordered if label not in baselines][: HIGHLIGHTED - len(baselines)]
    named = [label for label in ordered if label in {*baselines, *best}]
    return named, [label for label in ordered if label not in named]


def cost(study: Study) -> tuple[Figure, str] | None:
    """Gain over the baseline against training time; a panel a pair."""
    cells = study.cells[(study.cells["n"] > 0) & (study.cells["seconds"] > 0)]
    against_none = study.none in set(cells["label"])
    cells = cells.assign(
        height=cells["gain_over_none"].where(cells["label"] != study.none, 0.0) if against_none else cells["top1_mean"]
    )
    cells = cells[cells["height"].notna()]
    pairs = [pair for pair in study.pairs if (cells["pair"] == pair).sum() > 1]
    if not pairs:
        return None
    columns = min(3, len(pairs))
    figure, panels = _panels(len(pairs), columns, 3.4 if columns < 3 else 3.0, width=WIDTH if columns > 1 else NARROW)
    longest = float(cells["seconds"].max())
    scale, unit = (3600.0, "hours") if longest >= 5400 else (60.0, "minutes") if longest >= 150 else (1.0, "seconds")
    for axes, pair in zip(panels, pairs, strict=True):
        _cost_panel(axes, study, cells[cells["pair"] == pair], scale, against_none)
        axes.set_title(study.title(pair))
    height = f"gain over {study.none}, points" if against_none else "test top-1, %"
    _axis_labels(panels, columns, f"training time of one student, {unit}", height)
    shown = [s.label for s in study.overall.standings if s.label in set(cells["label"])]
    _legend(figure, [_marker(study, label) for label in shown])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call] # matplotlib's own is not annotated
    outside = []
    for axes, pair in zip(panels, pairs, strict=True):
        mine = cells[cells["pair"] == pair]
        low, high = axes.get_ylim()
        outside += list(mine.loc[(mine["height"] < low) | (mine["height"] > high), "label"])
        # With many methods only those on the front, and the baselines, are named in place.
        wanted = set(mine["label"]) if len(mine) <= NAMED else {study.none, study.kd, *_front(mine)["label"]}
        points = list(zip(mine["seconds"] / scale, mine["height"], strict=True))
        names = [label if label in wanted else "" for label in mine["label"]]
        place_labels(canvas, axes, points, names, [study.styles[label].colour for label in mine["label"]])
    what = f"Gain over {study.none}" if against_none else "Test top-1"
    lost = f" Outside their panels: {wording.listing(list(dict.fromkeys(outside)))}." if outside else ""
    return figure, (
        f"{what}, mean over seeds, against the wall time of training one student. "
        f"The line joins the methods that no other beats in less time.{lost}"
    )


def _front(cells: pd.DataFrame) -> pd.DataFrame:
    """Those that no other beats in less time, by rising time."""
    rising = cells.sort_values(["seconds", "height"], ascending=[True, False])
    return rising[rising["height"] > rising["height"].cummax().shift(fill_value=-np.inf)]


def _cost_panel(axes: Axes, study: Study, cells: pd.DataFrame, scale: float, zero: bool) -> None:
    if zero:
        axes.axhline(0, color=NEUTRAL, linestyle=(0, (4, 2)), linewidth=1)
    front = _front(cells)
    axes.plot(
        front["seconds"] / scale,
        front["height"],
        color=SOFT,
        linewidth=0.8,
        alpha=0.6,
        drawstyle="steps-post",
        zorder=1,
    )
    for cell in cells.itertuples():
        style = study.styles[str(cell.label)]
        axes.plot(
            cell.seconds / scale, cell.height, marker=style.marker, color=style.colour, markersize=6.5,
            markeredgecolor=PAPER, markeredgewidth=0.7, linestyle="none", zorder=3,
        )  # fmt: skip
    heights, seconds = list(cells["height"]), list(cells["seconds"] / scale)
    axes.set_ylim(*limits(heights, [0.0] if zero else []))
    left, right = min(seconds), max(seconds)
    if right > 4 * left:
        axes.set_xscale("log")
        axes.set_xlim(left / 1.3, right * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        return
    room = max(right - left, 0.05 * right)
    axes.set_xlim(max(0.0, left - 0.2 * room), right + 0.25 * room)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def critical_difference(study: Study) -> tuple[Figure, str] | None:
    """Demšar's diagram: mean ranks on a line, bars join what cannot be told apart."""
    comparison = study.overall.comparison
    if comparison is None:
        return None
    ranked = [(s.label, s.rank.mean) for s in study.overall.standings if s.rank is not None]
    groups = stats.indistinguishable([rank for _, rank in ranked], comparison.critical_difference)
    half = (len(ranked) + 1) // 2
    bars = 0.16 * len(groups)
    height = 1.1 + bars + 0.2 * half
    figure = Figure(figsize=(WIDTH - 1.5, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    worst = len(ranked)
    axes.set_xlim(worst + 0.28 * worst, 1 - 0.28 * worst)
    axes.set_ylim(height, 0)
    line = 0.72
    axes.plot([1, worst], [line, line], color=TEXT, linewidth=1)
    step = 1 if worst <= 15 else 5
    for tick in sorted({1, worst, *range(step, worst, step)} if step > 1 else set(range(1, worst + 1))):
        if tick in (worst,) or step == 1 or worst - tick >= 2:
            axes.plot([tick, tick], [line - 0.06, line], color=TEXT, linewidth=1)
            axes.text(tick, line - 0.1, f"{tick}", ha="center", va="bottom", fontsize=8)
    axes.plot([1, 1 + comparison.critical_difference], [0.2, 0.2], color=TEXT, linewidth=1.6, marker="|", markersize=6)
    axes.text(
        1 + comparison.critical_difference / 2,
        0.14,
        f"critical difference {comparison.critical_difference:.2f}",
        ha="center",
        va="bottom",
        fontsize=8,
    )
    for index, (first, last) in enumerate(groups):
        y = line + 0.16 * (index + 1)
        axes.plot(
            [ranked[first][1] - 0.05, ranked[last][1] + 0.05], [y, y], color=TEXT, linewidth=2.6, solid_capstyle="butt"
        )
    for index, (label, rank) in enumerate(ranked):
        better = index < half
        y = line + bars + 0.3 + 0.2 * (index if better else len(ranked) - 1 - index)
        end = 1 - 0.04 * worst if better else worst + 0.04 * worst
        style = study.styles[label]
        axes.plot([rank, rank, end], [line, y, y], color=SOFT, linewidth=0.7)
        axes.plot(
            rank,
            line,
            marker=style.marker,
            color=style.colour,
            markersize=5.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
        )
        text = f"{label}  {rank:.2f}" if better else f"{rank:.2f}  {label}"
        axes.text(end, y, f" {text} ", ha="left" if better else "right", va="center", fontsize=8.5)
    difference = f"{comparison.critical_difference:.2f} at {stats.CONFIDENCE:.0%}"
    test = f"χ² = {comparison.statistic:.1f}, p = {comparison.p_value:.2g}"
    return figure, (
        f"Mean ranks over {comparison.pairs} pairs, the best on the right. A bar joins methods that Nemenyi's test "
        f"cannot tell apart (critical difference {difference}). Friedman's test that all are alike: {test}."
    )


FIGURES: dict[str, Callable[[Study], tuple[Figure, str] | None]] = {
    "accuracy": accuracy,
    "curves": curves,
    "cost": cost,
    "critical_difference": critical_difference,
}


def inline(svg: str, name: str, caption: str) -> str:
    """An SVG file as a part of a page: identifiers of its own, the page's colours and font, a text alternative."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    # Declarations of namespaces are no addresses, but a page that loads nothing should not look as if it did.
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body).replace("xlink:href", "href")
    body = body.replace("'DejaVu Sans'", "var(--sans)")
    # A hundredth of a point is finer than any screen, and halves the page.
    body = re.sub(r"(\.\d\d)\d\d+", r"\1", body)
    for colour, themed in THEME.items():
        body = body.replace(colour, themed)
    text = caption.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return body.replace("<svg", f'<svg role="img" aria-label="{text}"', 1)


def _panels(
    count: int, columns: int, height: float, *, width: float, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
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


def _axis_labels(panels: Sequence[Axes], columns: int, below: str, left: str) -> None:
    for index, axes in enumerate(panels):
        # The lowest panel of each column, as the last row may not be full.
        if index + columns >= len(panels):
            axes.set_xlabel(below)
        if index % columns == 0:
            axes.set_ylabel(left)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    # Inches: a handle, and its name at 8 points.
    room = 0.6 + 0.075 * max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), max(1, int(figure.get_figwidth() / room)))
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(handles) // columns))
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        handletextpad=0.5,
        columnspacing=1.4,
    )


def _marker(study: Study, label: str, linestyle: Literal["none", "-"] = "none") -> Line2D:
    style = study.styles[label]
    return Line2D([], [], color=style.colour, marker=style.marker, linestyle=linestyle, markersize=5.5, label=label)


def _with_results(study: Study) -> list[str]:
    return [pair for pair in study.pairs if len(study.done(pair))]


def _cell(cells: pd.DataFrame, label: str, name: str) -> float | None:
    value = cells[name].get(label)
    return None if value is None or pd.isna(value) else float(value)


def _save(figure: Figure, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Laid out once, not once a format: with many panels that is what takes the time.
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call] # matplotlib's own is not annotated
    figure.set_layout_engine("none")
    saves: Iterable[tuple[str, dict[str, object]]] = (
        ("svg", {"metadata": {"Date": None}}),
        ("png", {"dpi": 200}),
    )
    for suffix, options in saves:
        write_atomically(
            stem.with_suffix(f".{suffix}"),
            lambda path, suffix=suffix, options=options: figure.savefig(path, format=suffix, **options),  # type: ignore[misc]
        )
