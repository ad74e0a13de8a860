"""What differs between two trials: by their records, and by the code that was stored with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdbench.results.code import stored_code
from kdbench.results.files import read_json
from kdbench.results.folder import TEACHERS, TrialFolder

Changes = dict[str, tuple[Any, Any]]
"""Both values by dotted key; None where one has no value."""


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Changes]:
    """What differs in the identity of two trials but their seed, by aspect; aspects that are equal are left out.

    ``one`` and ``other`` are contents of ``trial.json``. Aspects are ``trial``, ``settings``, ``recipe``, ``data``,
    ``source`` and ``teacher``.
    """
    keys = {
        "trial": ("protocol", "student", "method"),
        "source": ("fingerprint", "student_source"),
        "teacher": ("teacher_model", "teacher_key"),
    }
    found = {aspect: changes(_part(one, names), _part(other, names)) for aspect, names in keys.items()}
    for aspect in ("settings", "recipe", "data"):
        found[aspect] = changes(one.get(aspect) or {}, other.get(aspect) or {})
    return {aspect: changed for aspect, changed in found.items() if changed}


def changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> Changes:
    """The leaves of nested tables that differ, in the order of their keys; lists are leaves."""
    before, after = dict(_leaves(one)), dict(_leaves(other))
    keys = sorted(before.keys() | after.keys())
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def compare(one: Path, other: Path) -> dict[str, dict[str, Any]]:
    """All that differs between two trials' folders, by aspect; aspects that are equal are left out.

    Beside those of :func:`differences`: ``names``, ``seed``, ``outcome``, ``environment``, and ``code``, a unified diff
    by file, of what :func:`kdbench.results.store_code` has stored.
    """
    folders = TrialFolder(one), TrialFolder(other)
    trials = [folder.trial or {} for folder in folders]
    results = [read_json(folder.path / "result.json") or {} for folder in folders]
    teachers = [
        _teacher(folder.path, trial, result) for folder, trial, result in zip(folders, trials, results, strict=True)
    ]
    names = [_part(trial, ("suite", "label", "teacher", "seed")) for trial in trials]
    outcomes = [_part(result, ("status", "epoch", "top1", "finished")) for result in results]
    made_with = [
        {**(result.get("environment") or {}), **_prefixed("plugin", trial.get("plugin") or {})}
        for trial, result in zip(trials, results, strict=True)
    ]
    images = [_part(result.get("data") or {}, ("fingerprint", "n_train", "n_test")) for result in results]
    found: dict[str, dict[str, Any]] = {"names": changes(*names), **differences(*trials)}
    found["data"] = {**found.get("data", {}), **changes(*images)}
    found["teacher"] = {**found.get("teacher", {}), **changes(*teachers)}
    found["environment"] = changes(*made_with)
    found["outcome"] = changes(*outcomes)
    found["code"] = dict(_code(one, other))
    return {aspect: changed for aspect, changed in found.items() if changed}


def read_teacher(output: Path, key: str) -> dict[str, Any]:
    """``teacher.json`` of a teacher; empty where there is none."""
    return read_json(output / TEACHERS / key / "teacher.json") or {}


def _teacher(path: Path, trial: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    described = read_teacher(path.absolute().parent.parent, str(trial.get("teacher_key")))
    return {
        **_part(described, ("model", "recipe", "weights", "seed")),
        **_part(result.get("teacher") or {}, ("sha256", "top1")),
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


def _part(content: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: content.get(key) for key in keys}


def _prefixed(prefix: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{key}": value for key, value in content.items()}


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
