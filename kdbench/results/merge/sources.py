"""The sources of a merge: reads an output folder, and verifies each finished trial with its teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import ResultsError
from kdbench.results.digest import weights_digest
from kdbench.results.files import read_bytes
from kdbench.results.folder import AnyFolder, SuiteFolder, TeacherFolder, TrialFolder, suite_names
from kdbench.results.planned import PlanRecord
from kdbench.results.record import TeacherResult, TrialRecord, TrialResult
from kdbench.suite.plan import PROTOCOL


@dataclass(frozen=True)
class Teacher:
    """A finished teacher whose files are sound. Two with equal ``made`` are interchangeable."""

    source: Path
    folder: TeacherFolder
    result: TeacherResult
    made: tuple[str, str]
    """Hashes of its weights and of its images."""
    files: dict[str, str]
    """SHA-256 of each file, by name."""
    remark: str = ""
    """What of its key could not be verified."""

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.folder.path.name


@dataclass(frozen=True)
class Finished:
    """A finished trial whose files, identity and teacher are verified."""

    source: Path
    suite: str
    folder: TrialFolder
    record: TrialRecord
    result: TrialResult
    teacher: Teacher
    files: dict[str, str]
    """SHA-256 of each file, by name."""

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.record.id


@dataclass(frozen=True)
class LeftOut:
    """A finished trial that cannot be used, and why."""

    source: Path
    suite: str
    id: str
    reason: str


@dataclass
class Source:
    """The content of an output folder."""

    path: Path
    suites: list[str] = field(default_factory=list)
    trials: list[Finished] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    plans: dict[str, PlanRecord] = field(default_factory=dict)
    """By suite."""
    unfinished: int = 0
    failed: int = 0
    remarks: list[str] = field(default_factory=list)


def check_folders(sources: Sequence[Path], into: Path) -> None:
    """Refuse folders that are no results, have another protocol, or overlap.

    Raises:
        ResultsError: says which folder cannot be merged, and what to do.
    """
    target = into.resolve()
    if into.exists() and not into.is_dir():
        raise ResultsError(f"{into}: is not a folder; name another --into")
    seen: dict[Path, Path] = {}
    for source in sources:
        resolved = source.resolve()
        if not source.is_dir():
            raise ResultsError(f"{source}: no such folder; name the --output folder of kdbench run")
        for name in ("plan.json", "trial.json", "teacher.json"):
            if (source / name).exists():
                raise ResultsError(
                    f"{source}: is a folder in a results folder (it has a {name}); name the whole results folder, "
                    "as --output of kdbench run"
                )
        if resolved in seen:
            raise ResultsError(f"{source}: is the same folder as {seen[resolved]}; name each once")
        if target == resolved or resolved in target.parents or target in resolved.parents:
            raise ResultsError(f"{source}: is {into}, or one of them contains the other; name another --into")
        seen[resolved] = source
    for place in sorted(into.iterdir()) if into.exists() else ():
        for source in sources:
            if place.resolve().is_relative_to(source.resolve()):
                raise ResultsError(f"{place}: is a link into {source}; name another --into")
    for folder in (*sources, into):
        remedy = "name another --into" if folder == into else "leave this folder out"
        for suite in _suites(folder):
            SuiteFolder(folder, suite).check_protocol(remedy)
            for stored in SuiteFolder(folder, suite):
                trial = stored.description
                if trial is not None and trial.protocol != PROTOCOL:
                    raise ResultsError(
                        f"{stored.path}: trained under protocol {trial.protocol}, this kdbench has protocol "
                        f"{PROTOCOL}: the numbers must not be mixed; {remedy}"
                    )


def read_source(path: Path) -> Source:
    """Read and verify an output folder. All weights are read.

    Raises:
        ResultsError: there are no results, or they cannot be read.
    """
    source = Source(path, _suites(path))
    if not source.suites:
        raise ResultsError(f"{path}: contains no results; name the --output folder of kdbench run")
    teachers: dict[str, Teacher | str] = {}
    for suite in source.suites:
        folder = SuiteFolder(path, suite)
        plan = folder.plan
        if plan is not None:
            source.plans[suite] = plan
        elif (folder.path / "plan.json").exists():
            source.remarks.append(f"{folder.path / 'plan.json'}: is damaged and not used")
        for place in folder:
            found = _read_trial(path, suite, place, teachers)
            if isinstance(found, Finished):
                source.trials.append(found)
            elif found:
                source.left_out.append(LeftOut(path, suite, place.path.name, found))
            elif place.error is not None:
                source.failed += 1
            else:
                source.unfinished += 1
    used = {trial.teacher.folder.path: trial.teacher for trial in source.trials}
    source.remarks += [teacher.remark for teacher in used.values() if teacher.remark]
    return source


def _suites(output: Path) -> list[str]:
    try:
        names = suite_names(output) if output.is_dir() else []
        folders = [SuiteFolder(output, name) for name in names]
        return [f.path.name for f in folders if (f.path / "plan.json").exists() or any(f)]
    except OSError as error:
        raise ResultsError(f"{output}: cannot be read: {error.strerror or error}") from error


def _read_trial(path: Path, suite: str, place: TrialFolder, teachers: dict[str, Teacher | str]) -> Finished | str:
    """A verified trial, or why it cannot be used; empty if it is not finished."""
    files = _checksum_of_result(place)
    record, result = place.description, place.recorded
    if problem := place.damage(thorough=True) or place.description_problem():
        return problem
    if record is None or result is None:
        return ""
    if record.computed_id != record.id:
        return f"trial.json has the content of {record.computed_id}"
    if result.teacher is None:
        return "result.json does not name its teacher's weights"
    if result.teacher.key != record.teacher_key:
        return f"trial.json names the teacher {record.teacher_key}, result.json {result.teacher.key}"
    key = record.teacher_key
    if key not in teachers:
        teachers[key] = _read_teacher(path, key)
    teacher = teachers[key]
    if isinstance(teacher, str):
        return f"teacher {key}: {teacher}"
    if result.teacher.sha256 != teacher.made[0]:
        named, found = result.teacher.sha256[:8], teacher.made[0][:8]
        return f"teacher {key}: has other weights ({found}) than those that trained the student ({named})"
    if result.data.fingerprint != teacher.made[1]:
        return f"teacher {key}: was trained on other images than the student"
    files |= {name: stamp.sha256 for name, stamp in result.files.items()}
    return Finished(path, suite, place, record, result, teacher, files)


def _read_teacher(path: Path, key: str) -> Teacher | str:
    """A verified teacher, or why it cannot be used."""
    place = SuiteFolder(path, "").teacher(key)
    files = _checksum_of_result(place)
    if problem := place.damage(thorough=True) or place.description_problem():
        return problem
    record, result = place.description, place.recorded
    if record is None or result is None or not result.done:
        return f"is missing in {place.path.parent}" if result is None else "is not a trained network"
    remark = ""
    if record.computed_key != key:
        if record.protocol:
            return f"teacher.json has the content of {record.computed_key}"
        remark = f"{place.path}: its key was not verified: an earlier version wrote its teacher.json"
    found = teacher_made(place, result)
    if found is None:
        return f"{place.weights.name} does not have the weights that result.json names"
    files |= {name: stamp.sha256 for name, stamp in result.files.items()}
    return Teacher(path, place, result, found, files, remark)


def teacher_made(place: TeacherFolder, result: TeacherResult) -> tuple[str, str] | None:
    """Hashes of a finished teacher's weights, computed from its file, and of its images.

    None if the result names other weights.
    """
    try:
        digest = weights_digest(place.weights)
    except ResultsError:
        return None
    return None if result.sha256 not in {None, digest} else (digest, result.data.fingerprint)


def _checksum_of_result(place: AnyFolder) -> dict[str, str]:
    """Of ``result.json``: the file that was verified is the one that is copied."""
    content = read_bytes(place.path / "result.json")[0]
    return {} if content is None else {"result.json": hashlib.sha256(content).hexdigest()}
