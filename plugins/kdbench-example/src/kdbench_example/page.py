"""A section and a figure of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdbench.report.study import Study


def leaders(study: Study) -> Markup | None:
    """The method with the highest mean of each pair, as a list."""
    best = study.cells[study.cells["rank"].notna()].drop_duplicates("pair")
    rows = [(study.title(row.pair), row.label) for row in best.itertuples()]
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}: {}</li>").format(*row) for row in rows))


def calibration(study: Study) -> tuple[Figure, str] | None:
    """Brier score against accuracy, a point a method and pair."""
    # Imported when a figure is drawn: it takes a second.
    from matplotlib.figure import Figure

    cells = study.cells[study.cells["n"] > 0]
    if cells.empty or "brier_mean" not in cells:
        return None
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(cells["top1_mean"], cells["brier_mean"], "o")
    axes.set_xlabel("top-1, %")
    axes.set_ylabel("Brier score")
    return figure, "Brier score against accuracy: means over seeds, one point per method and pair."
