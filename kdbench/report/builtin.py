"""The built-in sections and figures, registered through the same hooks as those of plugins."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hookspecs import FigureSpec, SectionSpec, hookimpl

SECTIONS = {
    "verdict": "Verdict",
    "overall": "All pairs",
    "pairs": "Results by pair",
    "beside": "Other metrics",
    "costs": "Cost",
    "published": "Comparison with published results",
    "uncounted": "Excluded trials",
    "tuning": "Tuning",
    "rules": "Protocol",
    "environment": "Environment and reproduction",
}
"""Titles by name, in page order. Each name is a function in ``sections.py`` and a file in ``templates/sections/``."""
FIGURES = {
    "accuracy": ("accuracy", "pairs"),
    "curves": ("curves", "pairs"),
    "terms": ("training", "pairs"),
    "stages": ("training", "pairs"),
    "cost": ("cost", "costs"),
    "critical_difference": ("ranks", "overall"),
    "performance_profile": ("profile", "overall"),
}
"""Module in ``figures/`` and section, by name. The template of the section places the figure."""


@hookimpl
def kdbench_report_sections() -> Sequence[SectionSpec]:
    """The built-in sections; a report shows those with content."""
    return [SectionSpec(name, f"kdbench.report.sections:{name}", title=title) for name, title in SECTIONS.items()]


@hookimpl
def kdbench_figures() -> Sequence[FigureSpec]:
    """The built-in figures; a report shows those that its results allow."""
    return [
        FigureSpec(name, f"kdbench.report.figures.{module}:{name}", section=section)
        for name, (module, section) in FIGURES.items()
    ]
