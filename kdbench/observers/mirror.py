"""Mirrors the results folder in a tracking store.

A suite is an experiment, an invocation is a parent run, and a trial is a child run. All data of a trial are read from
its folder and compared with the store, and only the difference is sent. The same code therefore logs during training
and sends missing data later, and a repetition changes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from kdbench.observers.entries import TRIAL_ID, Point, as_tags, name_tags, not_finite, parameters, points, trial_tags
from kdbench.results import TrialFolder, TrialRecord, stored_code
from kdbench.status import Status

INVOCATION = "kdbench.invocation"
DESCRIPTION = "mlflow.note.content"
# Without it, MLflow 3 guesses the kind, and shows training runs as evaluations of language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
# Set after all other data except the status, so it marks a complete run; its value identifies the attempt at a trial.
RESULT = "kdbench.result"
STATUS = "kdbench.status"
ERROR = "kdbench.error"
SUPERSEDED = "kdbench.superseded"
PARENT = "mlflow.parentRunId"
# On an invocation's run: the number of its trials with these outcomes.
FAILED_TRIALS = "kdbench.trials_failed"
DIVERGED_TRIALS = "kdbench.trials_diverged"


@dataclass
class Run:
    """The content of one run in the store, as known to this process. Times are in milliseconds since 1970."""

    id: str
    started: int
    status: str
    """``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``."""
    tags: dict[str, str] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    latest: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Last step and value by metric. Values are sent in the order of steps: the store has all steps before it."""


@dataclass(frozen=True)
class Value:
    """One value of a metric; ``timestamp`` in milliseconds since 1970."""

    name: str
    value: float
    timestamp: int
    step: int


class Store(Protocol):
    """The required interface of a tracking store. Every call may raise the store's errors."""

    def experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """The id of an experiment, which is created if missing; missing ``tags`` are added."""

    def runs(self, experiment: str) -> Iterator[Run]:
        """All runs except deleted ones."""

    def create_run(self, experiment: str, started: int, tags: Mapping[str, str]) -> str:
        """Create a run with status ``RUNNING``, and return its id."""

    def log(self, run: str, values: Sequence[Value], parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Store entries, in one request if they are few; tags are sent in order."""

    def upload(self, run: str, files: Sequence[tuple[Path, str]]) -> None:
        """Upload files, each to a folder within the run's files."""

    def reopen(self, run: str) -> None:
        """Set the status of an ended run to ``RUNNING``."""

    def end(self, run: str, status: str, ended: int | None = None) -> None:
        """Set a run's status to ``FINISHED``, ``FAILED`` or ``KILLED``."""


@dataclass
class SyncReport:
    """Counts of trials; ``values`` counts metric values, ``superseded`` runs."""

    finished: int = 0
    unchanged: int = 0
    completed: int = 0
    created: int = 0
    superseded: int = 0
    values: int = 0
    damaged: int = 0

    def __str__(self) -> str:
        parts = [f"{self.finished} finished trials", f"{self.unchanged} already complete"]
        parts += [f"{self.completed} completed with {self.values} metric values ({self.created} in new runs)"]
        if self.superseded:
            parts += [f"{self.superseded} runs of earlier attempts marked superseded"]
        if self.damaged:
            parts += [f"{self.damaged} damaged results excluded; kdbench run retrains them"]
        return ", ".join(parts)


class Mirror:
    """One suite's experiment in one store; the suite's ``question`` is its description."""

    def __init__(self, store: Store, suite: str, question: str = "") -> None:
        self._store = store
        self._suite = suite
        self._about = as_tags({DESCRIPTION: question or None})
        self._experiment = store.experiment(suite, KIND | self._about)
        self._parents: dict[str, Run] = {}
        self._trials: dict[str, list[Run]] = {}
        self._created: dict[str, Run] = {}
        runs = [run for run in store.runs(self._experiment) if SUPERSEDED not in run.tags]
        used = {run.tags.get(PARENT) for run in runs}
        # A parent without children may be a duplicate: it is used only if there is no other.
        for run in sorted(runs, key=lambda run: run.id in used):
            if INVOCATION in run.tags:
                self._parents[run.tags[INVOCATION]] = run
        for run in runs:
            if TRIAL_ID in run.tags:
                self._trials.setdefault(run.tags[TRIAL_ID], []).append(run)
        self.report = SyncReport()

    def knows(self, trial: str) -> bool:
        """Whether there is a run for this trial."""
        return bool(self._trials.get(trial))

    def open_parent(self, invocation: str, tags: Mapping[str, Any]) -> str:
        """The id of an invocation's run, which is created if missing; its status becomes ``RUNNING``."""
        parent = self._parents.get(invocation)
        if parent is None:
            name = f"{self._suite} {_readable(invocation)}"
            tags = as_tags({**self._about, **tags, INVOCATION: invocation, "mlflow.runName": name})
            parent = self._parents[invocation] = self._create(dict(tags), _now())
        self._set_status(parent, "RUNNING")
        return parent.id

    def mirror(
        self,
        folder: TrialFolder,
        trial: TrialRecord,
        environment: Mapping[str, Any],
        parent: Callable[[], str],
        unfinished: str = "RUNNING",
    ) -> None:
        """Send the content of the folder that the store does not have.

        ``parent`` is called if a run is created or resumed.
        ``unfinished`` is the status of a trial without result and error.
        """
        # The result first: once it exists, the epochs are complete.
        result = folder.result
        error = None if result else folder.error
        wanted = points(folder.epochs, result)
        finite = {(point.name, point.step): point for point in wanted if math.isfinite(point.value)}
        attempt = None if result is None else result.finished
        run = self._find(trial.id, finite, attempt)
        status = _OUTCOMES[result.status] if result else "FAILED" if error else unfinished
        ended = _milliseconds(result.finished) if result else None
        if run is not None and attempt is not None and run.tags.get(RESULT) == attempt:
            # Only names: the suite may have renamed the trial since.
            self._log(run, [], {}, name_tags(trial))
            self.report.unchanged += run.status != "RUNNING"
            self.report.completed += run.status == "RUNNING"
            if run.status == "RUNNING":
                self._set_status(run, status, ended)
            return
        made_in = result.environment.model_dump(exclude_unset=True) if result else {}
        tags = trial_tags(trial, {**environment, **made_in}) | not_finite(wanted)
        tags[STATUS] = result.status.value if result else status.lower()
        if run is None:
            started = result.started if result else None
            tags[PARENT] = parent()
            run = self._create(tags, _milliseconds(started) or _now())
            self._trials.setdefault(trial.id, []).append(run)
            self.report.created += 1
        elif result is None:
            tags[PARENT] = parent()
        if error or ERROR in run.tags:
            tags |= as_tags({ERROR: error.message if error else ""})
        if result is not None:
            names = ("trial.json", "epochs.jsonl", "result.json")
            files = [(folder.path / name, "") for name in names if (folder.path / name).exists()]
            for name, path in stored_code(folder.path).items():
                files.append((path, PurePosixPath("source", name).parent.as_posix()))
            self._store.upload(run.id, files)
            tags[RESULT] = str(attempt)
            self.report.completed += 1
        self._log(run, finite.values(), parameters(trial), tags)
        self._set_status(run, status, ended)

    def close_parents(self, files: Sequence[tuple[Path, str]], *, interrupted: bool = False) -> None:
        """Give each open invocation without running trials its files, and end it.

        ``files`` are pairs of a file and the folder within the run's files. It is ``KILLED`` if ``interrupted``,
        or if a later invocation has run all its trials; ``FAILED`` if all its trials failed or diverged;
        otherwise ``FINISHED``, with tags that count the failed and diverged ones.
        """
        children: dict[str, list[Run]] = {}
        for run in (run for runs in self._trials.values() for run in runs):
            children.setdefault(run.tags.get(PARENT, ""), []).append(run)
        for parent in self._parents.values():
            trials = children.get(parent.id, [])
            if parent.status != "RUNNING" or any(run.status == "RUNNING" for run in trials):
                continue
            self._store.upload(parent.id, files)
            outcomes = [run.tags.get(STATUS) for run in trials]
            counts = {FAILED_TRIALS: outcomes.count(Status.FAILED), DIVERGED_TRIALS: outcomes.count(Status.DIVERGED)}
            self._log(parent, [], {}, {name: str(n) for name, n in counts.items() if n or name in parent.tags})
            died = interrupted or not trials
            all_failed = sum(counts.values()) == len(trials)
            self._set_status(parent, "KILLED" if died else "FAILED" if all_failed else "FINISHED")
        if self._created:
            self._remove_copies()

    def _remove_copies(self) -> None:
        """Mark duplicate runs: clients repeat a request if the response is lost."""
        mine = {(run.started, run.tags.get(key)): run for run in self._created.values() for key in _IDENTITIES}
        for run in list(self._store.runs(self._experiment)):
            same = next((mine.get((run.started, run.tags[key])) for key in _IDENTITIES if key in run.tags), None)
            if same is None or run.id in self._created or SUPERSEDED in run.tags:
                continue
            if run.tags.get(PARENT) == same.tags.get(PARENT):
                self._supersede(run)
        self._created.clear()

    def _find(self, trial: str, finite: Mapping[tuple[str, int], Point], attempt: str | None) -> Run | None:
        """The run of this attempt at a trial. Runs of other attempts are marked as superseded, never completed."""
        kept = None
        # Complete runs first: otherwise an empty duplicate might be filled instead.
        for run in sorted(self._trials.get(trial, []), key=lambda run: run.tags.get(RESULT) != attempt):
            complete = run.tags.get(RESULT)
            same = complete == attempt if complete else not self._contradicts(run, finite, attempt is not None)
            if same and kept is None:
                kept = run
                continue
            self._supersede(run)
        self._trials[trial] = [] if kept is None else [kept]
        return kept

    def _supersede(self, run: Run) -> None:
        self._log(run, [], {}, {SUPERSEDED: "true"})
        if run.status == "RUNNING":
            self._set_status(run, "KILLED")
        self.report.superseded += 1

    def _contradicts(self, run: Run, finite: Mapping[tuple[str, int], Point], finished: bool) -> bool:
        """Whether a run contains values of another attempt: different ones, or too many for a finished trial."""
        for name, (step, value) in run.latest.items():
            if (name, step) not in finite:
                # While a trial resumes from a checkpoint, its file has fewer epochs than the store.
                if finished:
                    return True
            # A repeated epoch takes a different time, but is the same training.
            elif name.rpartition("/")[2] != "seconds" and not math.isclose(finite[name, step].value, value):
                return True
        return False

    def _create(self, tags: dict[str, str], started: int) -> Run:
        identifier = self._store.create_run(self._experiment, started, tags)
        run = self._created[identifier] = Run(identifier, started, "RUNNING", dict(tags))
        return run

    def _set_status(self, run: Run, status: str, ended: int | None = None) -> None:
        if run.status == status:
            return
        if status == "RUNNING":
            self._store.reopen(run.id)
        else:
            # Clocks may be set back: MLflow accepts an end before the start, and shows a negative duration.
            self._store.end(run.id, status, max(_now() if ended is None else ended, run.started))
        run.status = status

    def _log(self, run: Run, wanted: Iterable[Point], parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Send the entries that the run does not have."""
        # Timestamps are the run's start plus the training time, not the clock: a value then always has the
        # same one, and a SQL store rejects duplicates, also if a client repeats a request after a lost response.
        values = [
            Value(point.name, point.value, run.started + int(point.elapsed * 1000), point.step)
            for point in wanted
            if point.name not in run.latest or point.step > run.latest[point.name][0]
        ]
        parameters = {name: text for name, text in parameters.items() if name not in run.parameters}
        tags = {name: text for name, text in tags.items() if run.tags.get(name) != text}
        if not (values or parameters or tags):
            return
        self._store.log(run.id, values, parameters, tags)
        run.latest |= {value.name: (value.step, value.value) for value in values}
        run.parameters |= set(parameters)
        run.tags |= tags
        self.report.values += len(values)


def report_files(suite: Path, report: Path | None) -> list[tuple[Path, str]]:
    """The files of an invocation's run: the plan, and every file of the report."""
    files = [(suite / "plan.json", "")] if (suite / "plan.json").exists() else []
    if report is not None and report.is_dir():
        for path in sorted(report.rglob("*")):
            if path.is_file() and not path.name.endswith(".tmp"):
                files.append((path, ("report" / path.parent.relative_to(report)).as_posix()))
    return files


_IDENTITIES = (INVOCATION, TRIAL_ID)
_OUTCOMES = {Status.DONE: "FINISHED", Status.DIVERGED: "FAILED"}


def _readable(invocation: str) -> str:
    """The time at the start of an invocation's name, in a readable form."""
    try:
        began = datetime.strptime(invocation.partition("-")[0], "%Y%m%dT%H%M%SZ")
    except ValueError:
        return invocation
    return f"{began:%Y-%m-%d %H:%M:%S} UTC"


def _now() -> int:
    return int(time.time() * 1000)


def _milliseconds(moment: str | None) -> int | None:
    return None if moment is None else int(datetime.fromisoformat(moment).timestamp() * 1000)
