"""What is known of the sign of a difference, and how tables and figures show it: by a mark and a colour each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import pandas as pd

from kdbench.report.wording import missing


class Resolution(Enum):
    """The state of a difference. "Not resolved" and "no interval" are not "equal"."""

    BETTER = "better"
    WORSE = "worse"
    NOT_RESOLVED = "not resolved"
    NO_INTERVAL = "no interval"

    @property
    def mark(self) -> str:
        """Its mark in tables and legends."""
        return _MARKS[self]

    @property
    def css(self) -> str:
        """Its class in the page."""
        return {"better": "up", "worse": "down"}.get(self.value, "unresolved")

    @property
    def meaning(self) -> str:
        """What the mark means."""
        return _MEANINGS[self]


_MARKS = {
    Resolution.BETTER: "↑",
    Resolution.WORSE: "↓",
    Resolution.NOT_RESOLVED: "○",
    Resolution.NO_INTERVAL: "?",
}
_MEANINGS = {
    Resolution.BETTER: "better: the interval is above 0",
    Resolution.WORSE: "worse: the interval is below 0",
    Resolution.NOT_RESOLVED: "not resolved: the interval contains 0",
    Resolution.NO_INTERVAL: "no interval",
}


def resolution(mean: float | None, resolved: bool | None) -> Resolution | None:
    """The state of a difference; None if there is no difference.

    ``resolved``: whether its interval excludes 0; None, NaN or ``<NA>`` without an interval.
    """
    if missing(mean):
        return None
    assert mean is not None
    if pd.isna(resolved):
        return Resolution.NO_INTERVAL
    if not resolved:
        return Resolution.NOT_RESOLVED
    return Resolution.BETTER if mean > 0 else Resolution.WORSE


def of_row(row: Mapping[Any, Any], name: str) -> Resolution | None:
    """The state of the difference ``name`` in a row of the leaderboard."""
    return resolution(row[name], row[f"{name}_resolved"])
