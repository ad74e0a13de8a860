"""What tuning returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.suite.schema import TunedMethod
from kdbench.tune.space import Space


@dataclass(frozen=True)
class Row:
    """A method: its configurations, and the validation accuracy in percent of each."""

    space: Space
    configurations: Sequence[Mapping[str, Any]] = ()
    """In the order in which they were tried; the first is the default."""
    results: Sequence[tuple[float | None, str]] = ()
    """The validation accuracy of each configuration that was trained, or why there is none."""

    @property
    def default_top1(self) -> float | None:
        """The accuracy of the default; None if it diverged or failed, or is not known."""
        return self.results[0][0] if self.results else None

    @property
    def chosen(self) -> int:
        """The number of the best configuration: the first of equals, and the default if none has a result."""
        values = [value for value, _ in self.results if value is not None]
        return next((n for n, (value, _) in enumerate(self.results) if values and value == max(values)), 0)

    @property
    def chosen_top1(self) -> float | None:
        """The accuracy of the best configuration."""
        return self.results[self.chosen][0] if self.results else None

    @property
    def chosen_settings(self) -> Mapping[str, Any]:
        """The best configuration."""
        return self.configurations[self.chosen] if self.configurations else self.space.default

    @property
    def without_result(self) -> list[tuple[int, str]]:
        """The numbers of configurations that diverged or failed, with the reason."""
        return [(number, reason) for number, (value, reason) in enumerate(self.results) if value is None]

    def record(self) -> TunedMethod:
        """What the suite of the chosen settings records."""
        return TunedMethod(
            trials=len(self.results),
            without_result=len(self.without_result),
            space=self.space.searches,
            default=self.space.default,
            chosen=dict(self.chosen_settings),
            default_top1=self.default_top1,
            chosen_top1=self.chosen_top1,
            note=self.space.note,
        )


@dataclass(frozen=True)
class Tuned:
    """The result of tuning a suite."""

    rows: Sequence[Row]
    pair: str
    seed: int
    trials: int
    """Configurations of each method."""
    folder: Path
    """The results of the configurations."""
    path: Path | None = None
    """The suite with the chosen settings; None if tuning was interrupted."""
    interrupted: bool = False
    stopped_by: int | None = None
    """The number of the signal that interrupted it."""
