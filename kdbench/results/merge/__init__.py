"""Combines the results of several machines or people.

Each source is an output folder of ``kdbench run``. Its finished trials are verified (``sources.py``), assigned to the
destination or, where they contradict what is there, to a folder of conflicts (``homes.py``), and copied with their
teachers (``copying.py``). Each suite gets a plan (``merged_plan.py``). Sources are never changed.

    into/<suite>/<trial id>/                            as kdbench run writes it
    into/_teachers/<key>/
    into/_conflicts/<source>/<suite>/<trial id>/        a results folder for each source with conflicts
    into/_conflicts/<source>/_teachers/<key>/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.claims import claiming_all, trials_of
from kdbench.results.folder import TEACHERS, SuiteFolder
from kdbench.results.merge import merged_plan
from kdbench.results.merge.copying import copy_training
from kdbench.results.merge.homes import CONFLICTS, Conflict, Decisions, Duplicate, Held, HeldTeacher, Move, decide
from kdbench.results.merge.sources import Finished, LeftOut, Source, Teacher, check_folders, read_source

__all__ = [
    "CONFLICTS",
    "Conflict",
    "Duplicate",
    "Finished",
    "Held",
    "HeldTeacher",
    "LeftOut",
    "Merge",
    "Move",
    "Source",
    "Teacher",
    "merge",
]


@dataclass
class Merge:
    """What a merge has done, or would do."""

    sources: list[Source]
    decisions: Decisions
    bytes: int = 0
    """Copied."""
    remarks: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> list[LeftOut]:
        """Finished trials that cannot be used."""
        return [one for source in self.sources for one in source.left_out]

    @property
    def complete(self) -> bool:
        """Whether each finished trial of the sources is in the destination."""
        return not self.left_out and not self.decisions.conflicts


def merge(sources: Sequence[Path | str], into: Path | str, *, dry_run: bool = False) -> Merge:
    """Copy the finished trials of ``sources``, with their teachers, to the results folder ``into``.

    Of two trials that differ in their numbers, the first one stays, or the one that ``into`` has already; the other is
    copied to a folder of conflicts. Weights are read, and compared with their checksums. With ``dry_run``, nothing is
    written.

    Raises:
        ResultsError: a folder is missing, has another protocol, is in use, or cannot be read or written. What was
            copied before is complete; the same call continues.
    """
    given, target = [Path(source) for source in sources], Path(into)
    check_folders(given, target)
    read = [read_source(source) for source in given]
    trials = [trial for source in read for trial in source.trials]
    names = _names(given)
    done = Merge(read, decide(trials, target, names))
    done.remarks += [remark for source in read for remark in source.remarks]
    if not dry_run:
        done.bytes = _carry_out_all(done.decisions.moves, target)
    for suite in sorted({trial.suite for trial in trials}):
        done.remarks += _plan(suite, target, read, dry_run=dry_run)
    return done


def _carry_out_all(moves: Sequence[Move], into: Path) -> int:
    """Copy what is to be moved, which no other process may train meanwhile; returns the bytes."""
    wanted = [(trials_of(move.found.suite), move.found.id) for move in moves if move.trial]
    wanted += [(TEACHERS, move.found.teacher.key) for move in moves if move.teacher]
    if not wanted:
        return 0
    with claiming_all(into, wanted):
        for suite in {move.found.suite for move in moves}:
            SuiteFolder(into, suite).remove_leftovers()
        return sum(_carry_out(move) for move in moves)


def _carry_out(move: Move) -> int:
    found, size = move.found, 0
    suite = SuiteFolder(move.home, found.suite)
    # A trial is never there without its teacher.
    if move.teacher:
        teacher = found.teacher
        size += copy_training(teacher.folder, suite.teacher(teacher.key), teacher.files)
    if move.trial:
        size += copy_training(found.folder, suite.trial(found.id), found.files)
    return size


def _plan(suite: str, into: Path, sources: Sequence[Source], *, dry_run: bool) -> list[str]:
    """Write the plan of a suite; returns remarks."""
    folder = SuiteFolder(into, suite)
    earlier = folder.plan
    found = [(into, earlier)] if earlier is not None else []
    found += [(source.path, source.plans[suite]) for source in sources if suite in source.plans]
    if found:
        merged = merged_plan.merge_plans(suite, found)
    else:
        records = [trial for place in folder if (trial := place.description) is not None]
        remark = f"{suite}: no folder has its plan.json; the new one names all trials, by their ids"
        merged = merged_plan.Merged(merged_plan.plan_of_trials(suite, records), (remark,))
    if dry_run:
        return list(merged.remarks)
    plan = merged_plan.with_states(merged.plan, folder)
    if plan != earlier:
        folder.write_plan(plan)
    remarks = [*merged.remarks, merged_plan.unplanned(plan, folder)]
    return [remark for remark in remarks if remark]


def _names(sources: Sequence[Path]) -> dict[Path, str]:
    """A name for the conflicts of each source: that of its folder, or of the one above if all folders are ``runs``."""
    names: dict[Path, str] = {}
    for source in sources:
        path = source.resolve()
        name = f"{path.parent.name}-{path.name}" if path.name == "runs" else path.name
        name = name.lstrip(".-_") or "source"
        number = 1
        while (numbered := name if number == 1 else f"{name}-{number}") in names.values():
            number += 1
        names[source] = numbered
    return names
