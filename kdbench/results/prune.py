"""Finds and removes the trials of a suite that no plan names any more, and the teachers that nothing needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.claims import claiming_all, trials_of
from kdbench.errors import ResultsError
from kdbench.results.compare import differences
from kdbench.results.files import remove as remove_path
from kdbench.results.folder import TEACHERS, AnyFolder, SuiteFolder, suite_names
from kdbench.results.listing import Defaults, list_trials
from kdbench.results.planned import NO_PLAN, PlanRecord
from kdbench.results.record import TrialRecord
from kdbench.suite.plan import Plan, Trial
from kdbench.words import listed, plural

_SHOWN = 3
_NAMES = {"teacher_model": "teacher", "student": "student", "method": "method", "seed": "seed"}
_SHOWN_KEYS = {"settings", "recipe", "data"}
_BY_HAND = "remove the folder yourself if it is not needed"


@dataclass(frozen=True)
class OldTrial:
    """A trial that no plan names."""

    folder: AnyFolder
    row: dict[str, Any]
    """As ``kdbench runs`` lists it."""
    why: str
    """What differs from the nearest trial of the plan."""

    @property
    def bytes(self) -> int:
        """On disk."""
        return int(self.row["bytes"])


@dataclass(frozen=True)
class OldTeacher:
    """A teacher that no trial and no plan names."""

    folder: AnyFolder
    model: str
    date: str
    bytes: int

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.folder.path.name


@dataclass
class Old:
    """What can be removed, and what is kept for a reason that its reader must know."""

    trials: list[OldTrial] = field(default_factory=list)
    teachers: list[OldTeacher] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all."""
        return sum(one.bytes for one in self.trials) + sum(one.bytes for one in self.teachers)


def prune(plan: Plan, path: Path | None, output: Path, defaults: Defaults, *, remove: bool = False) -> Old:
    """Find, and with ``remove`` remove, the trials of a suite that ``plan`` does not name, and unused teachers.

    ``path`` is the plan's file. If another suite file was the last to be run in this folder, which it shares, the
    trials of its plan are kept, too. A teacher is in use if the plan, a remaining trial, or the last plan of any other
    suite below ``output`` names it. What cannot be identified, because a record is damaged, is kept.

    Raises:
        ResultsError: there are no results, another protocol wrote them, a run uses them, or they cannot be removed.
    """
    folder = SuiteFolder(output, plan.suite.name)
    if not folder.path.is_dir():
        raise ResultsError(f"{folder.path}: no results; name their folder with --output")
    folder.check_protocol()
    if not remove:
        return _find(plan, path, folder, defaults)
    old = _find(plan, path, folder, defaults)
    wanted = [(trials_of(folder.path.name), one.folder.path.name) for one in old.trials]
    wanted += [(TEACHERS, one.key) for one in old.teachers]
    with claiming_all(output, wanted):
        folder.remove_leftovers()
        # Again, as a trial may have begun to use a teacher before it was claimed.
        again = _find(plan, path, folder, defaults)
        trials, teachers = {one.folder.path for one in again.trials}, {one.key for one in again.teachers}
        old.trials = [one for one in old.trials if one.folder.path in trials]
        old.teachers = [one for one in old.teachers if one.key in teachers]
        for place in (*(one.folder for one in old.trials), *(one.folder for one in old.teachers)):
            _remove(place)
    return old


def _find(plan: Plan, path: Path | None, folder: SuiteFolder, defaults: Defaults) -> Old:
    found = Old()
    planned = {trial.id for trial in plan.trials}
    shared = _shared_plan(folder, path)
    kept = planned | {row.id for row in shared.trials}
    if others := sum((folder.path / identifier).is_dir() for identifier in kept - planned):
        found.remarks.append(
            f"{folder.path}: kept {plural(others, 'trial')} of {shared.path or 'a suite given from Python'}, which was "
            f"the last to be run in this folder; to remove them, too, run {path or 'this suite'} first"
        )
    rows = {row["id"]: row for row in list_trials(folder.output, [folder.path.name], defaults, kept)}
    for place in folder:
        identifier, record = place.path.name, place.description
        if identifier in kept:
            continue
        if record is None:
            found.remarks.append(f"{place.path}: kept: {place.description_problem()}; {_BY_HAND}")
        elif record.computed_id != identifier:
            found.remarks.append(f"{place.path}: kept: trial.json has the content of {record.computed_id}; {_BY_HAND}")
        elif identifier in rows:
            found.trials.append(OldTrial(place, rows[identifier], why_old(record, plan.trials)))
    found.trials.sort(key=lambda one: (one.row["date"], one.row["id"]))
    _find_teachers(found, folder, {*(one.key for one in plan.teachers), *(one.key for one in shared.teachers)})
    return found


def _shared_plan(folder: SuiteFolder, path: Path | None) -> PlanRecord:
    """The last plan in the folder, if it is of another suite file; else an empty one.

    A file of the same name counts as the same: a merged plan names the file as it was called on another machine.
    """
    plan = folder.plan
    if plan is None or (path is not None and plan.path and Path(plan.path).name == path.name):
        return NO_PLAN
    return plan


def why_old(record: TrialRecord, planned: Sequence[Trial]) -> str:
    """What differs between a stored trial and the nearest one of a plan."""
    alike = [TrialRecord.of(trial) for trial in planned]
    for name, word in _NAMES.items():
        value = getattr(record, name)
        alike = [other for other in alike if getattr(other, name) == value]
        if not alike:
            return f"{word} {value} is not in the plan"
    found = min((differences(record, other) for other in alike), key=lambda one: sum(map(len, one.values())))
    parts = [
        f"{aspect} ({listed(list(keys), _SHOWN)})" if aspect in _SHOWN_KEYS else aspect
        for aspect, keys in found.items()
    ]
    return f"other {', '.join(parts)}"


def _find_teachers(found: Old, folder: SuiteFolder, used: set[str]) -> None:
    teachers = folder.output / TEACHERS
    if not teachers.is_dir():
        return
    if teachers.is_symlink():
        found.remarks.append(f"{teachers}: kept all teachers: it is a link, and other results may need them")
        return
    removed = {one.folder.path for one in found.trials}
    unknown: list[Path] = []
    for suite in suite_names(folder.output):
        other = SuiteFolder(folder.output, suite)
        if suite != folder.path.name:
            plan = other.plan
            if plan is not None:
                used = used | {row.key for row in plan.teachers}
            elif (other.path / "plan.json").exists():
                unknown.append(other.path / "plan.json")
        for place in other:
            if place.path in removed:
                continue
            record, result = place.description, place.recorded
            keys = {record.teacher_key if record else "", result.teacher.key if result and result.teacher else ""}
            used = used | keys
            if record is None:
                unknown.append(place.path / "trial.json")
    if unknown:
        found.remarks.append(
            f"{teachers}: kept all teachers, as these damaged records may name them: "
            f"{listed([str(path) for path in unknown], _SHOWN)}"
        )
        return
    for path in sorted(path for path in teachers.iterdir() if path.name[0] not in "_." and path.is_dir()):
        teacher = folder.teacher(path.name)
        if path.name in used or not (path / "teacher.json").exists():
            continue
        described, outcome = teacher.description, teacher.recorded
        if described is None:
            found.remarks.append(f"{path}: kept: {teacher.description_problem()}; {_BY_HAND}")
            continue
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        found.teachers.append(OldTeacher(teacher, described.model, outcome.finished if outcome else "", size))


def _remove(folder: AnyFolder) -> None:
    """Remove a folder: the result first and the description last, so that after a kill the same command continues."""
    if folder.path.is_symlink():
        remove_path(folder.path)
        return
    description = folder.path / folder.description_name
    remove_path(folder.path / "result.json")
    for path in sorted(folder.path.iterdir()):
        if path != description:
            remove_path(path)
    remove_path(folder.path)
