"""What a run returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.claims import Holder
from kdbench.results import PlanRecord, SuiteFolder
from kdbench.status import UNFINISHED, Status
from kdbench.suite.filters import Filters
from kdbench.suite.plan import Plan, Trial, count

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """The results of a suite after a run."""

    plan: Plan
    folder: SuiteFolder
    report: Path
    filters: Filters
    interrupted: bool = False
    stopped_by: int | None = None
    """The number of the signal that asked the run to stop, also if it came in the last epoch of all."""
    record: PlanRecord | None = None
    """The plan's record for reports; by default that of the last run in the folder."""
    elsewhere: Mapping[str, Holder] = field(default_factory=dict)
    """The ids of trials that other processes were training at the end, with these processes."""

    @property
    def failed(self) -> list[Trial]:
        """Trials whose last attempt failed."""
        return [trial for trial in self.plan.trials if trial.status is Status.FAILED]

    @property
    def missing(self) -> list[Trial]:
        """Selected trials without an outcome, which no other process is training."""
        asked = (trial for trial in self.plan.trials if self.filters.match(trial) and trial.id not in self.elsewhere)
        return [trial for trial in asked if trial.status in UNFINISHED]

    def to_frame(self) -> pd.DataFrame:
        """One row per selected trial; accuracies in percent, times in seconds."""
        # Imported here: pandas and scipy take a second to import, and a finished suite does not need them.
        from kdbench.report import frame

        return frame.read_trials(self.folder, self.filters, self.record)

    def __repr__(self) -> str:
        asked = [trial for trial in self.plan.trials if self.filters.match(trial)]
        states = ", ".join(f"{number} {state}" for state, number in count(asked).items())
        return f"<Results of {self.plan.suite.name}: {states}; report: {self.report / 'index.html'}>"
