"""What differs between two trials: by their records, and by the code that was stored with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdbench.results.code import stored_code
from kdbench.results.folder import SuiteFolder, TrialFolder
from kdbench.results.record import Record, TeacherRecord, TrialRecord, TrialResult

Changes = dict[str, tuple[Any, Any]]
"""Both values by dotted key; None where one has no value."""


def differences(one: TrialRecord | None, other: TrialRecord | None) -> dict[str, Changes]:
    """What differs in the identity of two trials but their seed, by aspect; aspects that are equal are left out.

    Aspects are ``trial``, ``settings``, ``recipe``, ``data``,
    ``source`` and ``teacher``.
    """
    keys = {
        "trial": ("protocol", "student", "method"),
        "source": ("fingerprint", "student_source", "part_sources"),
        "teacher": ("teacher_model", "teacher_key"),
    }
    found = {aspect: changes(_part(one, names), _part(other, names)) for aspect, names in keys.items()}
    for aspect in ("settings", "recipe", "data"):
        found[aspect] = changes(getattr(one, aspect, {}), getattr(other, aspect, {}))
    return {aspect: changed for aspect, changed in found.items() if changed}


def changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> Changes:
    """The leaves of nested tables that differ, in the order of their keys; lists are leaves."""
    before, after = dict(leaves(one)), dict(leaves(other))
    keys = sorted(before.keys() | after.keys())
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables, under dotted names; lists are leaves."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def compare(one: Path, other: Path) -> dict[str, dict[str, Any]]:
    """All that differs between two trials' folders, by aspect; aspects that are equal are left out.

    Beside those of :func:`differences`: ``names``, ``seed``, ``outcome``, ``environment``, and ``code``, a unified diff
    by file, of what :func:`kdbench.results.store_code` has stored.
    """
    folders = TrialFolder(one), TrialFolder(other)
    trials = [folder.description for folder in folders]
    results = [folder.recorded for folder in folders]
    teachers = [
        _teacher(folder.path, trial, result) for folder, trial, result in zip(folders, trials, results, strict=True)
    ]
    names = [_part(trial, ("suite", "label", "teacher", "seed")) for trial in trials]
    outcomes = [_part(result, ("status", "epoch", "top1", "finished")) for result in results]
    made_with = [
        {
            **(result.environment.model_dump() if result else {}),
            **(_prefixed("plugin", trial.plugin.model_dump()) if trial else {}),
        }
        for trial, result in zip(trials, results, strict=True)
    ]
    images = [_part(result and result.data, ("fingerprint", "n_train", "n_test")) for result in results]
    found: dict[str, dict[str, Any]] = {"names": changes(*names), **differences(*trials)}
    found["data"] = {**found.get("data", {}), **changes(*images)}
    found["teacher"] = {**found.get("teacher", {}), **changes(*teachers)}
    found["environment"] = changes(*made_with)
    found["outcome"] = changes(*outcomes)
    found["code"] = dict(_code(one, other))
    return {aspect: changed for aspect, changed in found.items() if changed}


def _teacher(path: Path, trial: TrialRecord | None, result: TrialResult | None) -> dict[str, Any]:
    suite = path.absolute().parent
    described: TeacherRecord | None = None
    if trial is not None and trial.teacher_key:
        described = SuiteFolder(suite.parent, suite.name).teacher(trial.teacher_key).description
    return {
        **_part(described, ("model", "recipe", "weights", "seed")),
        **_part(result and result.teacher, ("sha256", "top1")),
    }


def _code(one: Path, other: Path) -> Iterator[tuple[str, str]]:
    before, after = stored_code(one), stored_code(other)
    for name in sorted(before.keys() | after.keys()):
        old, new = (
            files[name].read_text(encoding="utf-8", errors="replace").splitlines() if name in files else []
            for files in (before, after)
        )
        if difference := "\n".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm="")):
            yield name, difference


def _part(record: Record | None, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: getattr(record, key, None) for key in keys}


def _prefixed(prefix: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{key}": value for key, value in content.items()}
