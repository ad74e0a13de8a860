"""Decides where each trial of a merge goes: into the destination, or to the conflicts beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import ResultsError
from kdbench.results.digest import weights_digest
from kdbench.results.folder import SuiteFolder, TrialFolder, suite_names
from kdbench.results.merge.sources import Finished, teacher_made
from kdbench.results.record import TeacherResult, TrialResult

CONFLICTS = "_conflicts"
"""In the destination: a results folder for each source that has conflicts."""


@dataclass(frozen=True)
class Held:
    """A finished trial that a results folder has, or that this merge copies into it."""

    source: Path
    folder: TrialFolder
    result: TrialResult


@dataclass(frozen=True)
class HeldTeacher:
    """The same for a teacher."""

    source: Path
    made: tuple[str, str]
    result: TeacherResult


@dataclass
class Home:
    """A results folder that trials are copied into, as it is after the trials that were put there so far."""

    output: Path
    _trials: dict[tuple[str, str], Held | None] = field(default_factory=dict)
    _teachers: dict[str, HeldTeacher | None] = field(default_factory=dict)
    _students: dict[str, set[tuple[str, str]]] | None = None

    def trial(self, suite: str, identifier: str) -> Held | None:
        """The finished trial of this id; None if there is none, or if it is damaged."""
        place = suite, identifier
        if place not in self._trials:
            folder = SuiteFolder(self.output, suite).trial(identifier)
            result = None if folder.damage(thorough=True) else folder.recorded
            self._trials[place] = Held(self.output, folder, result) if result and folder.description else None
        return self._trials[place]

    def teacher(self, key: str) -> HeldTeacher | None:
        """The finished teacher of this key; None if there is none, or if it is damaged."""
        if key not in self._teachers:
            folder = SuiteFolder(self.output, "").teacher(key)
            result = None if folder.damage(thorough=True) else folder.recorded
            made = teacher_made(folder, result) if result and result.done and folder.description else None
            self._teachers[key] = HeldTeacher(self.output, made, result) if result and made else None
        return self._teachers[key]

    def fits(self, found: Finished) -> bool:
        """Whether the teacher is, or can become, the one of this folder, and nothing else has the trial's place."""
        held = self.teacher(found.teacher.key)
        made = {held.made} if held else self._made_students_of(found.teacher.key)
        if made - {found.teacher.made}:
            return False
        trial = self.trial(found.suite, found.id)
        return trial is None or not differences(trial, found)

    def has(self, found: Finished) -> bool:
        """Whether the trial and its teacher are here already."""
        there = self.teacher(found.teacher.key), self.trial(found.suite, found.id)
        return None not in there and self.fits(found)

    def put(self, found: Finished) -> None:
        """Count the trial and its teacher as copied."""
        if self.trial(found.suite, found.id) is None:
            self._trials[found.suite, found.id] = Held(found.source, found.folder, found.result)
        if self.teacher(found.teacher.key) is None:
            self._teachers[found.teacher.key] = HeldTeacher(
                found.teacher.source, found.teacher.made, found.teacher.result
            )

    def _made_students_of(self, key: str) -> set[tuple[str, str]]:
        """With which weights and images the trials in this folder were trained whose teacher has this key."""
        if self._students is None:
            self._students = {}
            for suite in suite_names(self.output) if self.output.is_dir() else ():
                for trial in SuiteFolder(self.output, suite):
                    result = trial.recorded
                    if result is not None and result.teacher is not None:
                        made = result.teacher.sha256, result.data.fingerprint
                        self._students.setdefault(result.teacher.key, set()).add(made)
        return self._students.get(key, set())


@dataclass(frozen=True)
class Duplicate:
    """A trial that was there already, with the same numbers."""

    found: Finished
    kept: Held


@dataclass(frozen=True)
class Conflict:
    """A trial that differs from the one in the destination, or whose teacher does."""

    found: Finished
    kept: Held | None
    kept_teacher: HeldTeacher | None
    differs: tuple[str, ...]
    home: Path
    """The results folder that it is kept in."""


@dataclass(frozen=True)
class Move:
    """What is copied for a trial."""

    found: Finished
    home: Path
    trial: bool
    teacher: bool


@dataclass
class Decisions:
    """All that a merge does."""

    moves: list[Move] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)


def decide(trials: Sequence[Finished], into: Path, names: dict[Path, str]) -> Decisions:
    """Where each trial goes, in this order: the first of two that conflict stays. Nothing is written.

    ``names`` are those of the sources' folders for conflicts.
    """
    decisions = Decisions()
    main, beside = Home(into), dict[Path, Home]()
    for folder in _subfolders(into / CONFLICTS):
        beside[folder] = Home(folder)
    for found in trials:
        home = main if main.fits(found) else _beside(found, beside, into / CONFLICTS / names[found.source])
        kept, teacher = home.trial(found.suite, found.id), home.teacher(found.teacher.key)
        if kept is None or teacher is None:
            decisions.moves.append(Move(found, home.output, trial=kept is None, teacher=teacher is None))
        home.put(found)
        if home is not main:
            decisions.conflicts.append(_conflict(found, main, home.output))
        elif kept is not None:
            decisions.duplicates.append(Duplicate(found, kept))
    return decisions


def _beside(found: Finished, homes: dict[Path, Home], wanted: Path) -> Home:
    """The folder for a conflict: one that has it already, or else the first of its source's that it fits in."""
    for home in homes.values():
        if home.has(found):
            return home
    number = 1
    while True:
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        home = homes.setdefault(path, Home(path))
        if home.fits(found):
            return home
        number += 1


def _conflict(found: Finished, main: Home, home: Path) -> Conflict:
    kept = main.trial(found.suite, found.id)
    teacher = main.teacher(found.teacher.key)
    differs = differences(kept, found) if kept else []
    if "teacher" not in differs and (teacher is None or teacher.made != found.teacher.made):
        differs.insert(0, "teacher")
    return Conflict(found, kept, teacher, tuple(differs), home)


def differences(kept: Held, found: Finished) -> list[str]:
    """What differs in the numbers of two trials of the same id; times and environments do not count."""
    one, other = kept.result, found.result
    differing = []
    if (one.teacher and one.teacher.sha256) != (other.teacher and other.teacher.sha256):
        differing.append("teacher")
    if one.data.fingerprint != other.data.fingerprint:
        differing.append("images")
    for name in ("status", "stage", "epoch", "best_on_test"):
        if _text(getattr(one, name)) != _text(getattr(other, name)):
            differing.append(name)
    for name in ("metrics", "validation"):
        before, after = getattr(one, name), getattr(other, name)
        changed = [key for key in {**before, **after} if _text(before.get(key)) != _text(after.get(key))]
        if changed:
            differing.append(f"{name} ({', '.join(changed)})")
    if _other_weights(kept, found):
        differing.append("weights")
    return differing


def _other_weights(kept: Held, found: Finished) -> bool:
    name = found.folder.weights.name
    one, other = (result.files.get(name) for result in (kept.result, found.result))
    if one is None or other is None:
        return one is not other
    if one.sha256 == other.sha256:
        return False
    try:
        # Another version of safetensors may write the same tensors in another order.
        return weights_digest(kept.folder.weights) != weights_digest(found.folder.weights)
    except ResultsError:
        return True


def _text(value: Any) -> str:
    """As text, since NaN equals NaN here."""
    return json.dumps(value.model_dump() if hasattr(value, "model_dump") else value)


def _subfolders(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
