"""Finds a trial's folder by its id, a unique prefix of it, or its path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from kdbench.errors import ResultsError
from kdbench.results.folder import SuiteFolder, TrialFolder, suite_names
from kdbench.results.planned import PlannedTrial, PlanRecord
from kdbench.results.reproduction import run_command
from kdbench.status import Status
from kdbench.words import listed

_SHOWN = 4


def find_folder(name: str | Path, output: Path) -> Path:
    """The folder of the trial called ``name``: a folder, ``suite/id``, an id, or the unique beginning of an id.

    A finished trial is preferred where several suites have one of this id. Raises :class:`ResultsError` where
    there is none.
    """
    for path in (Path(name), output / name):
        if path.is_dir():
            return path
    return _search(str(name), output)


def _search(name: str, output: Path) -> Path:
    if not output.is_dir():
        raise ResultsError(f"{output}: no such results folder; name it with --output, or the trial by its folder")
    places: dict[str, list[Path]] = {}
    planned: dict[str, str] = {}
    for suite in suite_names(output):
        results = SuiteFolder(output, suite)
        plan = results.plan
        planned |= {row.id: _why_missing(row, plan) for row in plan.trials} if plan else {}
        for folder in results:
            places.setdefault(folder.path.name, []).append(folder.path)
    known = sorted({*places, *planned})
    matching = [name] if name in known else [identifier for identifier in known if identifier.startswith(name)]
    if len(matching) > 1:
        raise ResultsError(f"'{name}' is ambiguous: {listed(matching, _SHOWN)}; type more characters")
    if not matching:
        raise ResultsError(f"no trial '{name}' in {output}{_hint(name, known)}")
    found = places.get(matching[0], [])
    if not found:
        raise ResultsError(f"{matching[0]}: {planned[matching[0]]}")
    done = [path for path in found if TrialFolder(path).result is not None] or found
    if len(done) > 1:
        raise ResultsError(f"{matching[0]} is in {' and '.join(map(str, done))}; name the folder")
    return done[0]


def _why_missing(row: PlannedTrial, plan: PlanRecord) -> str:
    if row.status is Status.SKIPPED:
        return f"was skipped: {row.reason}"
    return f"is planned but not trained; {again(plan)} trains it"


def again(plan: PlanRecord | None) -> str:
    """How to train a plan's trials: a command, or a call for a suite without a file."""
    if plan is None:
        return "kdbench run SUITE"
    if plan.path is None or plan.classes:
        return "the same call of kdbench.run_suite"
    return run_command(plan, "SUITE")


def _hint(name: str, known: Iterable[str]) -> str:
    ids = list(known)
    near = difflib.get_close_matches(name, ids, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    holding = [identifier for identifier in ids if name in identifier]
    if holding:
        return f"; ids that contain it: {listed(holding, _SHOWN)}"
    return f"; known: {listed(ids, _SHOWN)}" if ids else "; the folder contains no trials"
