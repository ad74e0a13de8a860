"""The progress of a training: the entries of a checkpoint other than the states of modules and optimiser."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from kdbench.errors import TrialError
from kdbench.results import EpochRecord, parse


def now() -> str:
    """The current UTC time to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass
class Progress:
    """The position of a training, and its records so far. Each field is an entry of the checkpoint."""

    phase_index: int = 0
    """The current phase, counted from 0."""
    epoch: int = 0
    """Completed epochs of this phase."""
    records: list[EpochRecord] = field(default_factory=list)
    """One record for each completed epoch of all phases."""
    seconds: float = 0.0
    """Seconds spent in the student's own steps."""
    teacher_seconds: float = 0.0
    """Its share of the seconds spent in teacher passes."""
    peak_memory_bytes: int | None = None
    """Peak memory of one student, with its optimiser's state; None on a CPU."""
    best: tuple[float, int, dict[str, Tensor]] | None = None
    """Validation accuracy, epoch (from 1) and weights, if the recipe selects by validation."""
    best_correct: Tensor | None = None
    """Which test images the best epoch classifies correctly, (N,) booleans; None also in earlier checkpoints."""
    started: str = field(default_factory=now)
    """Start time of the first attempt, in ISO 8601."""

    @property
    def best_epoch(self) -> int | None:
        """The epoch, counted from 1, that is best on the validation split."""
        return self.best[1] if self.best is not None else None

    def enter_next_phase(self) -> None:
        """Count the phase as completed."""
        self.phase_index += 1
        self.epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """The entries of a checkpoint."""
        state = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**state, "records": [record.to_json() for record in self.records]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the entries of a checkpoint; its other entries are ignored.

        Raises ``KeyError`` if one is missing, :class:`~kdbench.errors.TrialError` for records that cannot be read.
        """
        added = {"best_correct": None}
        found = {entry.name: {**added, **state}[entry.name] for entry in fields(self)}
        found["records"] = [_read(record) for record in found["records"]]
        for name, value in found.items():
            setattr(self, name, value)


def _read(content: Mapping[str, Any]) -> EpochRecord:
    record, problem = parse(EpochRecord, content)
    if record is None:
        raise TrialError(f"the checkpoint's record of an epoch cannot be read: {problem}")
    return record
