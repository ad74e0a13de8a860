"""The trials in a results folder, as ``kdbench runs`` lists them."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdbench.errors import ResultsError
from kdbench.results.folder import SuiteFolder, TrialFolder, suite_names
from kdbench.results.record import TrialRecord, TrialResult
from kdbench.status import Status

Defaults = Callable[[str], Mapping[str, Any]]
"""A method's default settings, as far as they are known."""


def list_trials(
    output: Path, suites: Collection[str], defaults: Defaults, planned: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """One row a trial of ``suites`` (all of ``output``, if empty), oldest first within a suite.

    ``settings`` are those that differ from ``defaults``, ``bytes`` is the size on disk. ``planned`` says whether the
    suite still asks for the trial: by the ids in ``planned``, else by the last run's plan.

    Raises:
        ResultsError: there is no such results folder.
    """
    if not output.is_dir():
        raise ResultsError(f"{output}: no such results folder; name it with --output")
    known = suite_names(output)
    if missing := sorted(set(suites) - set(known)):
        raise ResultsError(f"{output}: contains no results of suite {missing[0]}; suites: {', '.join(known) or 'none'}")
    rows = []
    for name in suites or known:
        folder = SuiteFolder(output, name)
        plan = folder.plan
        ids = planned if planned is not None else {row.id for row in plan.trials} if plan else set()
        found = [_row(folder, place, trial, defaults, ids) for place, trial in _trials(folder)]
        rows += sorted(found, key=lambda row: (row["date"], row["id"]))
    return rows


def _trials(folder: SuiteFolder) -> Iterator[tuple[TrialFolder, TrialRecord]]:
    for place in folder:
        trial = place.description
        if trial is not None:
            yield place, trial


def _row(
    folder: SuiteFolder, place: TrialFolder, trial: TrialRecord, defaults: Defaults, planned: Collection[str]
) -> dict[str, Any]:
    usual = {key: _plain(value) for key, value in defaults(trial.method).items()}
    result = place.result
    written = datetime.fromtimestamp(_stat(place.path / "trial.json")[1], UTC)
    return {
        "id": place.path.name,
        "suite": folder.path.name,
        "label": trial.label,
        "status": _status(folder, place, trial, result),
        "top1": result.top1 if result else None,
        "date": result.finished if result else written.isoformat(timespec="seconds"),
        "settings": {k: v for k, v in trial.settings.items() if k not in usual or usual[k] != v},
        "source": trial.fingerprint,
        "bytes": sum(_stat(path)[0] for path in place.path.rglob("*")),
        "planned": place.path.name in planned,
    }


def _status(folder: SuiteFolder, place: TrialFolder, trial: TrialRecord, result: TrialResult | None) -> str:
    if result is None:
        if place.damage():
            return "damaged"
        return Status.FAILED if place.error is not None else "unfinished" if place.epochs else Status.PENDING
    teacher = folder.teacher(trial.teacher_key).result
    made_with = result.teacher.sha256 if result.teacher else None
    return Status.STALE if teacher and teacher.sha256 not in (None, made_with) else result.status


def _stat(path: Path) -> tuple[int, float]:
    """Bytes of a file, and when it was changed; zeros for a folder, and for what a run has moved away meanwhile."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return 0, 0.0
    return (state.st_size, state.st_mtime) if stat.S_ISREG(state.st_mode) else (0, 0.0)


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
