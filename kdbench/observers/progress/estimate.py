"""The remaining time of a run, estimated from the epochs so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kdbench.results import MAIN, EpochRecord
from kdbench.suite.plan import Trial


@dataclass
class _Mean:
    """A running mean of seconds."""

    seconds: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.count += 1

    @property
    def value(self) -> float | None:
        return self.seconds / self.count if self.count else None


class TimeLeft:
    """Estimates the remaining seconds of trials.

    The expected time of an epoch is that of the same student with the same method; if unknown, with other methods; if
    unknown, that of any student. These are the students' own times. In wall-clock time, a round of a cohort also
    includes the teacher and the evaluation: ``pause`` and ``end_round`` measure the ratio, for each worker.
    Callers pass the ids of trials, because computing an id is slow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._since: dict[int, float] = {}
        self._wall = 0.0
        self._own = 0.0
        self._round_own: dict[int, float] = {}
        self._means: dict[tuple[str, ...], _Mean] = {}
        self._done: dict[str, dict[str, int]] = {}
        self._stages: dict[tuple[str, str], dict[str, int]] = {}

    def pause(self, worker: int = 0) -> None:
        """Exclude the time since the last call: the worker trained no students in it."""
        self._since[worker] = self._clock()
        self._round_own[worker] = 0.0

    def resume(self, identifier: str, trial: Trial, records: Iterable[EpochRecord]) -> None:
        """Count the epochs of a trial from earlier invocations; their times are not used."""
        for record in records:
            self._count(identifier, trial, record)

    def epoch(self, identifier: str, trial: Trial, record: EpochRecord, worker: int = 0) -> None:
        """A trial finished an epoch."""
        self._count(identifier, trial, record)
        stage = record.stage
        for key in ((trial.student, trial.label, stage), (trial.student, stage), (stage,)):
            self._means.setdefault(key, _Mean()).add(record.seconds)
        self._round_own[worker] = self._round_own.get(worker, 0.0) + record.seconds

    def _count(self, identifier: str, trial: Trial, record: EpochRecord) -> None:
        stage = record.stage
        done = self._done.setdefault(identifier, {})
        done[stage] = done.get(stage, 0) + 1
        if record.in_main and done[stage] == 1:
            # The stages before the main one of this method, and their epochs, are now known.
            before = {name: count for name, count in done.items() if name != MAIN}
            self._stages[trial.student, trial.label] = before

    def end_round(self, worker: int = 0) -> None:
        """All trials of a worker's cohort finished the epoch they were in."""
        self._wall += self._clock() - self._since.get(worker, self._began)
        self._own += self._round_own.get(worker, 0.0)
        self.pause(worker)

    def of(self, trials: Mapping[str, Trial]) -> float | None:
        """Remaining wall-clock seconds of these trials (by id); None if unknown."""
        if self._own <= 0:
            return None
        expected = [self._own_seconds(identifier, trial) for identifier, trial in trials.items()]
        if any(seconds is None for seconds in expected):
            return None
        return sum(seconds for seconds in expected if seconds is not None) * self._wall / self._own

    def _own_seconds(self, identifier: str, trial: Trial) -> float | None:
        done = self._done.get(identifier, {})
        planned = {MAIN: trial.recipe.epochs}
        if MAIN not in done:
            planned |= self._stages.get((trial.student, trial.label), {})
        total = 0.0
        for stage, epochs in planned.items():
            left = max(0, epochs - done.get(stage, 0))
            mean = self._mean(trial, stage)
            if left and mean is None:
                return None
            total += left * (mean or 0.0)
        return total

    def _mean(self, trial: Trial, stage: str) -> float | None:
        keys = [(trial.student, trial.label, stage), (trial.student, stage), (stage,)]
        return next((self._means[key].value for key in keys if key in self._means), None)
