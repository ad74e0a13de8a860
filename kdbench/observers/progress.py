"""Shows the progress of a run: a live table in a terminal, lines of text elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from kdbench.hookspecs import RunInfo, hookimpl
from kdbench.observers.estimate import TimeLeft
from kdbench.results import MAIN, EpochRecord, Failure, SuiteFolder, TeacherRecord, TeacherResult, TrialResult
from kdbench.status import UNFINISHED, Status
from kdbench.suite.plan import Cohort, Plan, Trial, count

LINES_PER_COHORT = 10
SECONDS_BETWEEN_LINES = 60.0


def clock_time(seconds: float | None) -> str:
    """``mm:ss``, or ``h:mm:ss`` for an hour or more.

    >>> clock_time(61), clock_time(3661), clock_time(None)
    ('01:01', '1:01:01', '--:--')
    """
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def in_columns(groups: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """Lines of at most ``width`` characters: each group's name, and its cells in aligned columns."""
    cells = [cell for group in groups.values() for cell in group]
    if not cells:
        return []
    margin = max(len(name) for name in groups) + 4
    size = max(len(cell) for cell in cells) + 2
    columns = max(1, (width - margin + 2) // size)
    lines = []
    for name, group in groups.items():
        for start in range(0, len(group), columns):
            lead = f"  {name}" if start == 0 else ""
            row = "".join(cell.ljust(size) for cell in group[start : start + columns])
            lines.append(f"{lead.ljust(margin)}{row}".rstrip())
    return lines


@dataclass
class _Row:
    """A trial in training."""

    trial: Trial
    stage: str = ""
    epoch: int = 0
    top1: float | None = None
    """Accuracy of the latest epoch on :attr:`split`, in percent."""
    ended: Status | None = None

    def take(self, record: EpochRecord) -> None:
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
class _View:
    """The state of the live display; the drawing thread reads only this."""

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


def time_left(seconds: Sequence[float]) -> str:
    """``00:41 left``, or ``00:41 left (02:03 in all)`` if the run's remaining time is known and longer."""
    if not seconds:
        return "--:-- left"
    rest = f" ({clock_time(seconds[1])} in all)" if len(seconds) > 1 and seconds[1] > seconds[0] + 1 else ""
    return f"{clock_time(seconds[0])} left{rest}"


def split_shown(selection: str | None) -> str:
    """The split of the accuracy shown during training, for a recipe's ``selection``."""
    return "validation" if selection == "validation" else "test"


def top1_shown(record: EpochRecord | TeacherResult, split: str) -> float | None:
    """The accuracy on a split in percent; None if it was not measured."""
    return record.validation_top1 if split == "validation" else record.top1


class ProgressObserver:
    """Shows teacher, cohort, stage, epoch, time left, and each method's accuracy after its latest epoch.

    This is the accuracy on the test set or, if the recipe selects by validation, on the validation split.
    ``clock`` returns seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._estimate = TimeLeft(clock)
        self._began: float | None = None
        self._cohorts: list[Cohort] = []
        self._cohort_of: dict[str, int] = {}
        self._planned = 0
        self._entered = 0
        self._open: dict[str, Trial] = {}
        self._number: int | None = None
        self._rows: dict[str, _Row] = {}
        self._place = ("", 0)
        self._complete = True
        self._ends: tuple[float, ...] = ()
        self._said: tuple[str, int] = ("", 0)
        self._said_at = -math.inf
        self._skipped: set[tuple[str, str]] = set()
        self._teacher_began = 0.0
        self._teacher_epochs = 0
        self._trained = 0

    # ---- the run

    @hookimpl
    def kdbench_suite_started(self, plan: Plan, run: RunInfo) -> None:
        """Set up the display."""
        self._cohorts = list(plan.cohorts)
        for number, cohort in enumerate(self._cohorts):
            trials = {trial.id: trial for trial in cohort.trials}
            self._cohort_of |= dict.fromkeys(trials, number)
            missing = {
                identifier: trial
                for identifier, trial in trials.items()
                if trial.status in UNFINISHED and (run.chosen is None or identifier in run.chosen)
            }
            self._open |= missing
            self._planned += bool(missing)

    # First: the live display must be closed before other observers print or take time.
    @hookimpl(tryfirst=True)
    def kdbench_suite_finished(self, plan: Plan, interrupted: bool) -> None:
        """Print a summary."""
        self.close()
        states = ", ".join(f"{number} {state}" for state, number in count(plan.trials).items())
        spent = "" if self._began is None else f" in {clock_time(self._clock() - self._began)}"
        now = f"; {self._trained} trained now" if 0 < self._trained < count(plan.trials).get(Status.DONE, 0) else ""
        self._say([f"{plan.suite.name}: {'stopped early; ' if interrupted else ''}{states}{now}{spent}"])

    def close(self) -> None:
        """Stop the live display. May be called again."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ---- teachers

    @hookimpl
    def kdbench_teacher_started(self, teacher: TeacherRecord) -> None:
        """Show the teacher."""
        self._begin()
        self._teacher_began, self._teacher_epochs = self._clock(), 0
        self._said, self._said_at = ("", 0), self._clock()
        self._show(_View(f"teacher {teacher.name}", (), {}, self._clock))

    @hookimpl
    def kdbench_teacher_epoch_finished(self, teacher: TeacherRecord, record: EpochRecord) -> None:
        """Show the teacher's progress."""
        self._teacher_epochs += 1
        epoch, epochs = record.epoch, teacher.epochs
        mean = (self._clock() - self._teacher_began) / self._teacher_epochs
        left = mean * (epochs - epoch)
        head = f"teacher {teacher.name}  {epoch}/{epochs}"
        split = split_shown(teacher.selection)
        top1 = top1_shown(record, split)
        cells = {} if top1 is None else {f"{split} accuracy": [f"{top1:.1f}"]}
        self._show(_View(head, (self._clock() + left,), cells, self._clock))
        self._say_at_times("teacher", epoch, epochs, lambda: self._block(head, time_left([left]), cells))

    @hookimpl
    def kdbench_teacher_finished(self, teacher: TeacherRecord, result: TeacherResult | None) -> None:
        """Show the teacher's accuracy."""
        split = split_shown(teacher.selection)
        top1 = top1_shown(result, split) if result else None
        self._say([f"teacher {teacher.name}: " + ("ready" if top1 is None else f"{top1:.2f} % {split} accuracy")])

    # ---- trials

    @hookimpl
    def kdbench_trial_skipped(self, trial: Trial, reason: str) -> None:
        """Show the reason, once for all seeds."""
        self._open.pop(trial.id, None)
        if (trial.pair, trial.label) not in self._skipped:
            self._skipped.add((trial.pair, trial.label))
            self._say([f"skipped {trial.label} on {trial.pair}: {reason}"])

    @hookimpl
    def kdbench_trial_started(self, trial: Trial, run: RunInfo) -> None:
        """Add the trial to its cohort's table."""
        self._begin()
        identifier = trial.id
        number = self._cohort_of.get(identifier)
        if number != self._number or not self._rows:
            self._enter(number)
        self._open[identifier] = trial
        row = self._rows[identifier] = _Row(trial)
        records = SuiteFolder(run.output.parent, run.output.name).trial(identifier).epochs
        self._estimate.resume(identifier, trial, records)
        self._estimate.pause()
        if records:
            row.take(records[-1])
        self._draw()

    @hookimpl
    def kdbench_epoch_finished(self, trial: Trial, record: EpochRecord) -> None:
        """Show the trial's accuracy."""
        place = (record.stage, record.epoch)
        if place != self._place:
            self._end_round()
            self._place, self._complete = place, False
        identifier = trial.id
        self._estimate.epoch(identifier, trial, record)
        if identifier in self._rows:
            self._rows[identifier].take(record)
        self._look()

    @hookimpl
    def kdbench_trial_finished(self, trial: Trial, result: TrialResult) -> None:
        """Show that the trial ended."""
        self._end(trial, result.status)

    @hookimpl
    def kdbench_trial_failed(self, trial: Trial, error: Failure) -> None:
        """Show the reason of the failure."""
        message = " ".join(error.reason.split())
        self._say([f"failed {trial.label} on {trial.pair}, seed {trial.seed}: {message}"])
        self._end(trial, Status.FAILED)

    # ---- display

    def _begin(self) -> None:
        if self._began is None:
            self._began = self._clock()
        if self._live is None and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, refresh_per_second=2, transient=True)
            self._live.start()

    @property
    def _cohort(self) -> Cohort | None:
        return None if self._number is None else self._cohorts[self._number]

    def _enter(self, number: int | None) -> None:
        self._number, self._rows, self._ends = number, {}, ()
        self._entered += 1
        self._place, self._complete = ("", 0), True
        self._said, self._said_at = ("", 0), self._clock()

    def _end(self, trial: Trial, state: Status) -> None:
        identifier = trial.id
        self._trained += state is Status.DONE
        self._open.pop(identifier, None)
        if identifier in self._rows:
            self._rows[identifier].ended = state
            self._look()

    def _look(self) -> None:
        """Redraw; after a complete round, a line may be printed."""
        if not self._complete and not any(map(self._is_awaited, self._rows.values())):
            self._end_round()
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            cohorts = max(self._planned, self._entered)
            which = f"cohort {self._entered} of {cohorts}: " if cohorts > 1 else ""
            self._show(_View(which + self._head(), self._ends, self._groups(), self._clock))

    def _is_awaited(self, row: _Row) -> bool:
        """Whether a trial has not reported an epoch that others have reported."""
        stage, epoch = self._place
        if row.ended:
            return False
        if stage == MAIN:
            return row.stage != MAIN or row.epoch < epoch
        return row.stage == stage and row.epoch < epoch

    def _end_round(self) -> None:
        if self._complete:
            return
        self._complete = True
        self._estimate.end_round()
        rows = {identifier: row.trial for identifier, row in self._rows.items() if not row.ended}
        left = (self._estimate.of(rows), self._estimate.of(self._open))
        self._ends = tuple(self._clock() + seconds for seconds in _until_none(left))
        stage, epoch = self._place
        cohort = self._cohort
        last = cohort.epochs if cohort is not None and stage == MAIN else 0
        self._say_at_times(stage, epoch, last, self._round_lines)

    def _round_lines(self) -> list[str]:
        left = time_left([end - self._clock() for end in self._ends])
        return self._block(self._head(), left, self._groups())

    def _head(self) -> str:
        students = {row.trial.student for row in self._rows.values()}
        stage, epoch = self._place
        cohort = self._cohort
        if cohort is None:
            name = "trials"
        elif len(students) == 1:
            name = f"{cohort.teacher.name}:{students.pop()}, seed {cohort.seed}"
        else:
            name = cohort.name
        if not stage:
            return f"{name}  starting"
        epochs = f"/{cohort.epochs}" if stage == MAIN and cohort is not None else ""
        splits = {row.split for row in self._rows.values()} if stage == MAIN else set()
        measured = f"  {' or '.join(sorted(splits))} accuracy" if "validation" in splits else ""
        return f"{name}  {stage} {epoch}{epochs}{measured}"

    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for row in self._rows.values():
            groups.setdefault(row.trial.student, []).append(row.cell)
        return groups

    def _block(self, head: str, left: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
        """One line if it fits, otherwise a table."""
        line = f"{head}  {left}  " + "  ".join(cell for group in groups.values() for cell in group)
        if len(groups) <= 1 and len(line) <= self._console.width:
            return [line.rstrip()]
        return [f"{head}  {left}", *in_columns(groups, self._console.width)]

    def _say_at_times(self, stage: str, epoch: int, last: int, lines: Callable[[], list[str]]) -> None:
        """Print a round: ten per cohort, or one per minute if epochs are long; above a live table only the last."""
        at_end = epoch == last
        due = last and epoch % max(1, math.ceil(last / LINES_PER_COHORT)) == 0
        late = self._clock() - self._said_at >= SECONDS_BETWEEN_LINES
        if (at_end or (self._live is None and (due or late))) and self._said != (stage, epoch):
            self._said, self._said_at = (stage, epoch), self._clock()
            self._say(lines())

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            # As Text, because rich could interpret parts of labels and messages as markup.
            self._console.print(Text(line), soft_wrap=True)

    def _show(self, view: _View) -> None:
        if self._live is not None:
            self._live.update(view)


def _until_none(values: Iterable[float | None]) -> Iterator[float]:
    for value in values:
        if value is None:
            return
        yield value
