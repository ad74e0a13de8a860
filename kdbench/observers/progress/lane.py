"""What one worker trains: a teacher, or the trials of a cohort."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kdbench.observers.progress.text import in_columns, split_shown, time_left, top1_shown
from kdbench.results import MAIN, EpochRecord
from kdbench.status import Status
from kdbench.suite.plan import Cohort, Trial


@dataclass
class Row:
    """A trial in training."""

    trial: Trial
    stage: str = ""
    epoch: int = 0
    top1: float | None = None
    """Accuracy of the latest epoch on :attr:`split`, in percent."""
    ended: Status | None = None

    def take(self, record: EpochRecord) -> None:
        """An epoch ended."""
        self.stage, self.epoch = record.stage, record.epoch
        top1 = top1_shown(record, self.split)
        self.top1 = top1 if top1 is not None and math.isfinite(top1) else None

    @property
    def split(self) -> str:
        """The split of the shown accuracy; with selection by validation, test accuracy must not be shown."""
        return split_shown(self.trial.recipe.selection)

    @property
    def cell(self) -> str:
        """The method and its student's accuracy."""
        if self.ended in {Status.DIVERGED, Status.FAILED}:
            return f"{self.trial.label} {self.ended}"
        return f"{self.trial.label} {'-' if self.top1 is None else f'{self.top1:.1f}'}"


@dataclass(frozen=True)
class View:
    """What a lane shows; the drawing thread reads only this."""

    head: str
    ends: tuple[float, ...]
    """Expected end times of the cohort (or teacher) and of the run; empty if unknown."""
    groups: Mapping[str, Sequence[str]]
    clock: Callable[[], float]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left = [end - self.clock() for end in self.ends]
        yield Text(f"{self.head}  {time_left(left)}", style="bold", no_wrap=True, overflow="ellipsis")
        for line in in_columns(self.groups, options.max_width):
            yield Text(line, no_wrap=True, overflow="ellipsis")


class Lane:
    """The trials of one worker's cohort, round by round: in a round, each trial finishes an epoch."""

    def __init__(self, worker: int, device: str) -> None:
        """``worker`` is 0 if there is only one."""
        self.worker = worker
        self.name = f"worker {worker} ({device})  " if worker else ""
        self.view: View | None = None
        self.rows: dict[str, Row] = {}
        self.number: int | None = None
        """The cohort's number in the plan."""
        self.cohort: Cohort | None = None
        self.counted = ""
        """``cohort 2 of 30: ``."""
        self.place = ("", 0)
        """Stage and epoch of the round."""
        self.complete = True
        """Whether all trials finished the round."""
        self.ends: tuple[float, ...] = ()
        self.said: tuple[str, int] = ("", 0)
        self.said_at = -math.inf
        self.teacher_began = 0.0
        self.teacher_epochs = 0

    def enter(self, number: int | None, cohort: Cohort | None, counted: str, now: float) -> None:
        """Begin with a cohort."""
        self.number, self.cohort, self.counted = number, cohort, counted
        self.rows, self.ends = {}, ()
        self.place, self.complete = ("", 0), True
        self.said, self.said_at = ("", 0), now

    @property
    def waits(self) -> bool:
        """Whether a trial has not reported the epoch of an unfinished round."""
        return not self.complete and any(map(self._is_awaited, self.rows.values()))

    def _is_awaited(self, row: Row) -> bool:
        stage, epoch = self.place
        if row.ended:
            return False
        if stage == MAIN:
            return row.stage != MAIN or row.epoch < epoch
        return row.stage == stage and row.epoch < epoch

    @property
    def left(self) -> dict[str, Trial]:
        """Its trials that have not ended, by id."""
        return {identifier: row.trial for identifier, row in self.rows.items() if not row.ended}

    @property
    def last_epoch(self) -> int:
        """Of the present stage; 0 if unknown."""
        return self.cohort.epochs if self.cohort is not None and self.place[0] == MAIN else 0

    @property
    def head(self) -> str:
        """``resnet56:resnet20, seed 0  main 3/240``."""
        students = {row.trial.student for row in self.rows.values()}
        stage, epoch = self.place
        cohort = self.cohort
        if cohort is None:
            name = "trials"
        elif len(students) == 1:
            name = f"{cohort.teacher.name}:{students.pop()}, seed {cohort.seed}"
        else:
            name = cohort.name
        if not stage:
            return f"{self.name}{name}  starting"
        epochs = f"/{cohort.epochs}" if stage == MAIN and cohort is not None else ""
        splits = {row.split for row in self.rows.values()} if stage == MAIN else set()
        measured = f"  {' or '.join(sorted(splits))} accuracy" if "validation" in splits else ""
        return f"{self.name}{name}  {stage} {epoch}{epochs}{measured}"

    @property
    def groups(self) -> dict[str, list[str]]:
        """Its cells by student."""
        groups: dict[str, list[str]] = {}
        for row in self.rows.values():
            groups.setdefault(row.trial.student, []).append(row.cell)
        return groups
