"""How far a training has come: what a checkpoint records beside the states of modules and optimiser."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from kdbench.errors import TrialError
from kdbench.results import EpochRecord, parse


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass
class Progress:
    """Where a training is, and what was recorded of it so far. Each field is an entry of the checkpoint."""

    phase_index: int = 0
    """The phase that is being trained, counted from 0."""
    epoch: int = 0
    """Epochs of this phase that are over."""
    records: list[EpochRecord] = field(default_factory=list)
    """One for each epoch of all phases so far."""
    seconds: float = 0.0
    """Spent in the student's own steps."""
    teacher_seconds: float = 0.0
    """Its share of the teacher's passes."""
    peak_memory_bytes: int | None = None
    """Of one student, with its optimiser's state; None on a CPU."""
    best: tuple[float, int, dict[str, Tensor]] | None = None
    """Accuracy on the validation split, epoch from 1, and weights, where the recipe selects by it."""
    started: str = field(default_factory=now)
    """When the first attempt began, ISO 8601."""

    @property
    def best_epoch(self) -> int | None:
        """The epoch, counted from 1, that is best on the validation split."""
        return self.best[1] if self.best is not None else None

    def enter_next_phase(self) -> None:
        """Count the phase as over."""
        self.phase_index += 1
        self.epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """The entries of a checkpoint."""
        state = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**state, "records": [record.to_json() for record in self.records]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the entries of a checkpoint; others that it has are ignored.

        Raises ``KeyError`` where one is missing, :class:`~kdbench.errors.TrialError` for records that cannot be read.
        """
        found = {entry.name: state[entry.name] for entry in fields(self)}
        found["records"] = [_read(record) for record in found["records"]]
        for name, value in found.items():
            setattr(self, name, value)


def _read(content: Mapping[str, Any]) -> EpochRecord:
    record, problem = parse(EpochRecord, content)
    if record is None:
        raise TrialError(f"the checkpoint's record of an epoch cannot be read: {problem}")
    return record
