"""The sections and figures that kdbench brings, offered through the hooks that any plugin uses."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hookspecs import FigureSpec, SectionSpec, hookimpl

SECTIONS = {
    "verdict": "Verdict",
    "overall": "Over all pairs",
    "pairs": "Pair by pair",
    "beside": "Beside accuracy",
    "costs": "What it costs",
    "published": "Beside published figures",
    "uncounted": "Trials outside the means",
    "rules": "Protocol",
    "environment": "Environment, and how to make this again",
}
"""Titles by name, in the page's order: each a function of ``sections.py``, and ``templates/sections/<name>.html.j2``.
"""
FIGURES = {
    "accuracy": ("accuracy", "pairs"),
    "curves": ("curves", "pairs"),
    "terms": ("training", "pairs"),
    "stages": ("training", "pairs"),
    "cost": ("cost", "costs"),
    "critical_difference": ("ranks", "overall"),
}
"""The module below ``figures/`` and the section, by name. Their sections' templates place them."""


@hookimpl
def kdbench_report_sections() -> Sequence[SectionSpec]:
    """The built-in sections; every report shows those that have something to say."""
    return [SectionSpec(name, f"kdbench.report.sections:{name}", title=title) for name, title in SECTIONS.items()]


@hookimpl
def kdbench_figures() -> Sequence[FigureSpec]:
    """The built-in figures; every report shows those that its results allow."""
    return [
        FigureSpec(name, f"kdbench.report.figures.{module}:{name}", section=section)
        for name, (module, section) in FIGURES.items()
    ]
