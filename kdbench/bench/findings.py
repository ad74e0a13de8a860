"""What was measured and what was left out, in a JSON file that is complete after every row."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdbench.results import write_json

FORMAT = 1
"""Of the file."""
EQUAL = "equal"
"""The unit of a comparison: 1 if two trainings ended with the same bits, else 0."""


@dataclass(frozen=True)
class Row:
    """A measured value: the median of ``n`` measurements."""

    part: str
    name: str
    settings: Mapping[str, Any]
    value: float
    unit: str
    n: int
    spread: tuple[float, float] | None
    """The quartiles of the measurements; None if there are fewer than three."""

    @classmethod
    def of(cls, part: str, name: str, settings: Mapping[str, Any], values: Sequence[float], unit: str) -> Row:
        """The row of one or more measurements of a value."""
        spread = None
        if len(values) >= 3:
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
            spread = low, high
        return cls(part, name, dict(settings), statistics.median(values), unit, len(values), spread)

    @property
    def is_unequal(self) -> bool:
        """Whether it is a comparison of trainings that should be equal and are not."""
        return self.unit == EQUAL and self.value != 1


@dataclass(frozen=True)
class LeftOut:
    """What was not measured, and why."""

    part: str
    name: str
    settings: Mapping[str, Any]
    reason: str
    failed: bool = False
    """Whether it is an error; otherwise there was no time or memory, or it does not apply."""


@dataclass
class Findings:
    """All that a run of ``kdbench bench`` found. Each change is written to ``path`` at once, if there is one."""

    path: Path | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Of the run: parts, minutes, device."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """Hardware, and versions of software."""
    rows: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    complete: bool = False
    """False while parts are measured, and in the file of an interrupted run."""
    listener: Callable[[Row | LeftOut], None] = lambda _: None
    """Is given each entry."""

    def add(self, *rows: Row) -> None:
        """Keep rows. Raises :class:`~kdbench.errors.ResultsError` if the file cannot be written."""
        self.rows += rows
        self._changed(*rows)

    def leave_out(
        self, part: str, name: str, settings: Mapping[str, Any], reason: str, *, failed: bool = False
    ) -> None:
        """Say that something was not measured."""
        entry = LeftOut(part, name, dict(settings), reason, failed)
        self.left_out.append(entry)
        self._changed(entry)

    def describe(self, machine: Mapping[str, Any]) -> None:
        """Keep what the machine is."""
        self.machine = dict(machine)
        self.write()

    def finish(self) -> None:
        """Every part has ended."""
        self.complete = True
        self.write()

    @property
    def failed(self) -> bool:
        """Whether something failed, or is not equal to what it should be equal to."""
        return any(entry.failed for entry in self.left_out) or any(row.is_unequal for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "format": FORMAT,
            "complete": self.complete,
            "conditions": dict(self.conditions),
            "machine": dict(self.machine),
            "rows": [asdict(row) for row in self.rows],
            "left_out": [asdict(entry) for entry in self.left_out],
        }

    def write(self) -> None:
        """Replace the file."""
        if self.path is not None:
            write_json(self.path, self.to_json())

    def _changed(self, *entries: Row | LeftOut) -> None:
        self.write()
        for entry in entries:
            self.listener(entry)
