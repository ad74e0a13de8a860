"""The observer: what to print, and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from kdbench.hookspecs import RunInfo, hookimpl
from kdbench.observers.progress.estimate import TimeLeft
from kdbench.observers.progress.lane import Lane, Row, View
from kdbench.observers.progress.text import clock_time, in_columns, split_shown, time_left, top1_shown
from kdbench.results import EpochRecord, Failure, SuiteFolder, TeacherRecord, TeacherResult, TrialResult
from kdbench.status import UNFINISHED, Status
from kdbench.suite.plan import Cohort, Plan, Trial, count

LINES_PER_COHORT = 10
SECONDS_BETWEEN_LINES = 60.0


class ProgressObserver:
    """Shows teacher, cohort, stage, epoch, time left, and each method's accuracy after its latest epoch.

    This is the accuracy on the test set or, if the recipe selects by validation, on the validation split.
    Each worker of the run has a lane. ``clock`` returns seconds.
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
        self._entered: set[int | None] = set()
        self._open: dict[str, Trial] = {}
        self._lanes: dict[int, Lane] = {}
        self._skipped: set[tuple[str, str]] = set()
        self._teachers: dict[str, str] = {}
        """What each teacher of the plan is called, by its key."""
        self._trained = 0
        self._ended: set[str] = set()
        """The trainings with a result that other trials can adopt."""

    # ---- the run

    @hookimpl
    def kdbench_suite_started(self, plan: Plan, run: RunInfo) -> None:
        """Set up the display."""
        self._teachers = {teacher.key: teacher.shown for teacher in plan.teachers}
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
    def kdbench_teacher_started(self, teacher: TeacherRecord, run: RunInfo) -> None:
        """Show the teacher."""
        self._begin()
        lane = self._lane(run)
        lane.teacher_began, lane.teacher_epochs = self._clock(), 0
        lane.said, lane.said_at = ("", 0), self._clock()
        self._show(lane, View(f"{lane.name}{self._title(teacher)}", (), {}, self._clock))

    @hookimpl
    def kdbench_teacher_epoch_finished(self, teacher: TeacherRecord, record: EpochRecord, run: RunInfo) -> None:
        """Show the teacher's progress."""
        lane = self._lane(run)
        lane.teacher_epochs += 1
        epoch, epochs = record.epoch, teacher.epochs
        mean = (self._clock() - lane.teacher_began) / lane.teacher_epochs
        left = mean * (epochs - epoch)
        head = f"{lane.name}{self._title(teacher)}  {epoch}/{epochs}"
        split = split_shown(teacher.selection)
        top1 = top1_shown(record, split)
        cells = {} if top1 is None else {f"{split} accuracy": [f"{top1:.1f}"]}
        self._show(lane, View(head, (self._clock() + left,), cells, self._clock))
        self._say_at_times(lane, ("teacher", epoch), epochs, lambda: self._block(head, time_left([left]), cells))

    @hookimpl
    def kdbench_teacher_finished(self, teacher: TeacherRecord, result: TeacherResult | None) -> None:
        """Show the teacher's accuracy."""
        split = split_shown(teacher.selection)
        top1 = top1_shown(result, split) if result else None
        self._say([f"{self._title(teacher)}: " + ("ready" if top1 is None else f"{top1:.2f} % {split} accuracy")])

    def _title(self, teacher: TeacherRecord) -> str:
        return f"teacher {self._teachers.get(teacher.key, teacher.name)}"

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
        lane = self._lane(run)
        identifier = trial.id
        number = self._cohort_of.get(identifier)
        if number != lane.number or not lane.rows:
            self._enter(lane, number)
        self._open[identifier] = trial
        row = lane.rows[identifier] = Row(trial)
        records = SuiteFolder(run.output.parent, run.output.name).trial(identifier).epochs
        self._estimate.resume(identifier, trial, records)
        self._estimate.pause(lane.worker)
        if records:
            row.take(records[-1])
        self._draw(lane)

    @hookimpl
    def kdbench_epoch_finished(self, trial: Trial, record: EpochRecord, run: RunInfo) -> None:
        """Show the trial's accuracy."""
        lane = self._lane(run)
        place = (record.stage, record.epoch)
        if place != lane.place:
            self._end_round(lane)
            lane.place, lane.complete = place, False
        identifier = trial.id
        self._estimate.epoch(identifier, trial, record, lane.worker)
        if identifier in lane.rows:
            lane.rows[identifier].take(record)
        self._look(lane)

    @hookimpl
    def kdbench_trial_finished(self, trial: Trial, result: TrialResult, run: RunInfo) -> None:
        """Show that the trial ended."""
        self._trained += result.done and result.adopted_from is None
        self._ended |= {trial.training} - {""}
        self._end(trial, result.status, run)

    @hookimpl
    def kdbench_trial_failed(self, trial: Trial, error: Failure, run: RunInfo) -> None:
        """Show the reason of the failure."""
        message = " ".join(error.reason.split())
        self._say([f"failed {trial.label} on {trial.pair}, seed {trial.seed}: {message}"])
        self._end(trial, Status.FAILED, run)

    # ---- display

    def _lane(self, run: RunInfo) -> Lane:
        return self._lanes.setdefault(run.worker, Lane(run.worker, run.device))

    def _begin(self) -> None:
        if self._began is None:
            self._began = self._clock()
        if self._live is None and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, refresh_per_second=2, transient=True)
            self._live.start()

    def _enter(self, lane: Lane, number: int | None) -> None:
        self._entered.add(number)
        cohorts = max(self._planned, len(self._entered))
        counted = f"cohort {len(self._entered)} of {cohorts}: " if cohorts > 1 else ""
        lane.enter(number, None if number is None else self._cohorts[number], counted, self._clock())

    def _end(self, trial: Trial, state: Status, run: RunInfo) -> None:
        identifier = trial.id
        self._open.pop(identifier, None)
        lane = self._lane(run)
        if identifier in lane.rows:
            lane.rows[identifier].ended = state
            self._look(lane)

    def _look(self, lane: Lane) -> None:
        """Redraw; after a complete round, a line may be printed."""
        if not lane.complete and not lane.waits:
            self._end_round(lane)
        self._draw(lane)

    def _draw(self, lane: Lane) -> None:
        if self._live is not None:
            self._show(lane, View(lane.counted + lane.head, lane.ends, lane.groups, self._clock))

    def _end_round(self, lane: Lane) -> None:
        if lane.complete:
            return
        lane.complete = True
        self._estimate.end_round(lane.worker)
        # Several workers share what is left.
        working = sum(bool(one.left) for one in self._lanes.values())
        of_all = self._estimate.of(self._to_train())
        left = (self._estimate.of(lane.left), None if of_all is None else of_all / max(1, working))
        lane.ends = tuple(self._clock() + seconds for seconds in _until_none(left))
        self._say_at_times(lane, lane.place, lane.last_epoch, lambda: self._round_lines(lane))

    def _to_train(self) -> dict[str, Trial]:
        """The open trials without those that will adopt the result of an equal training."""
        trainings = set(self._ended)
        found = {}
        for identifier, trial in self._open.items():
            if trial.training not in trainings:
                found[identifier] = trial
                trainings |= {trial.training} - {""}
        return found

    def _round_lines(self, lane: Lane) -> list[str]:
        left = time_left([end - self._clock() for end in lane.ends])
        return self._block(lane.head, left, lane.groups)

    def _block(self, head: str, left: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
        """One line if it fits, otherwise a table."""
        line = f"{head}  {left}  " + "  ".join(cell for group in groups.values() for cell in group)
        if len(groups) <= 1 and len(line) <= self._console.width:
            return [line.rstrip()]
        return [f"{head}  {left}", *in_columns(groups, self._console.width)]

    def _say_at_times(self, lane: Lane, place: tuple[str, int], last: int, lines: Callable[[], list[str]]) -> None:
        """Print a round: ten per cohort, or one per minute if epochs are long; above a live table only the last."""
        epoch = place[1]
        at_end = epoch == last
        due = last and epoch % max(1, math.ceil(last / LINES_PER_COHORT)) == 0
        late = self._clock() - lane.said_at >= SECONDS_BETWEEN_LINES
        if (at_end or (self._live is None and (due or late))) and lane.said != place:
            lane.said, lane.said_at = place, self._clock()
            self._say(lines())

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            # As Text, because rich could interpret parts of labels and messages as markup.
            self._console.print(Text(line), soft_wrap=True)

    def _show(self, lane: Lane, view: View) -> None:
        lane.view = view
        if self._live is not None:
            lanes = sorted(self._lanes.values(), key=lambda one: one.worker)
            self._live.update(Group(*(one.view for one in lanes if one.view is not None)))


def _until_none(values: Iterable[float | None]) -> Iterator[float]:
    for value in values:
        if value is None:
            return
        yield value
