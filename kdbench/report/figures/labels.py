"""Labels next to points, if there is space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox


def place_labels(
    canvas: FigureCanvasAgg,
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    size: float = 7.5,
) -> int:
    """Write each label right, left, above or below its point, the highest points first; returns the number placed.

    Points with an empty label are only kept uncovered.

    A label that would cover a point or another label, or leave the panel, is omitted: the legend has it too.
    The layout must have been computed, for the panel's final size.
    """
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call] # not annotated in matplotlib
    panel = axes.get_window_extent(renderer)
    pixels = axes.transData.transform(list(points))
    marks = [(x, y) for x, y in pixels]
    taken: list[Bbox] = []
    placed = 0
    for index in sorted(range(len(points)), key=lambda i: -points[i][1]):
        if not labels[index]:
            continue
        for offset, horizontal, vertical in (
            ((5, 3), "left", "bottom"),
            ((6, 0), "left", "center"),
            ((-6, 0), "right", "center"),
            ((0, 6), "center", "bottom"),
            ((0, -6), "center", "top"),
            ((5, -5), "left", "top"),
        ):
            text = axes.annotate(
                labels[index], points[index], xytext=offset, textcoords="offset points", ha=horizontal, va=vertical,
                fontsize=size,
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            others = (mark for other, mark in enumerate(marks) if other != index)
            inside = panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
            if inside and not any(box.padded(3).contains(x, y) for x, y in others) and not box.count_overlaps(taken):
                taken.append(box)
                placed += 1
                # Already placed: including it in the layout would take time and move the panel.
                text.set_in_layout(False)
                break
            text.remove()
    return placed
