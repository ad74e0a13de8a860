"""From what a user calls a trial to its folder, if there is a student in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kdbench.errors import ResultsError
from kdbench.results import TEACHERS, SuiteFolder, TrialFolder, read_json
from kdbench.suite.plan import PROTOCOL

_SHOWN = 4


@dataclass(frozen=True)
class FinishedTrial:
    """A trial that is done, as its folder tells it."""

    path: Path
    trial: Mapping[str, Any]
    """``trial.json``."""
    result: Mapping[str, Any]
    """``result.json``."""

    @property
    def id(self) -> str:
        """The trial's id."""
        return str(self.trial["id"])

    @property
    def data(self) -> Mapping[str, Any]:
        """The data set as the result states it: classes, image shape, channel statistics, fingerprint."""
        data: Mapping[str, Any] = self.result["data"]
        return data

    @property
    def weights(self) -> Path:
        """``student.safetensors``."""
        return TrialFolder(self.path).weights

    @property
    def suite_plugins(self) -> list[Path]:
        """The local plugin files that the trial's suite names, as far as they are still there."""
        plan = read_json(self.path.parent / "plan.json") or {}
        named = (plan.get("suite") or {}).get("plugins") or ()
        folder = Path(plan.get("path") or "").parent
        return [folder / name for name in named if (folder / name).is_file()]


def find_trial(name: str | Path, output: Path) -> FinishedTrial:
    """The finished trial called ``name``: its folder, its id, or an id's beginning, unique below ``output``.

    Raises :class:`ResultsError` where there is none, or none with a student.
    """
    path = Path(name)
    if not path.is_dir():
        path = _search(str(name), output)
    return read_finished(path)


def read_finished(path: Path) -> FinishedTrial:
    """What stands in a trial's folder. Raises :class:`ResultsError` where that is no student."""
    folder = TrialFolder(path)
    trial, result = folder.trial, read_json(path / "result.json")
    if trial is None:
        if (path / "teacher.json").exists():
            raise ResultsError(f"{path}: is a teacher's folder; students alone are exported")
        raise ResultsError(f"{path}: holds no trial.json; name a trial's folder, runs/<suite>/<trial id>")
    if trial.get("protocol") != PROTOCOL:
        raise ResultsError(
            f"{path}: written under protocol {trial.get('protocol')}, this kdbench has protocol {PROTOCOL}; "
            "export it with the kdbench that trained it"
        )
    if result is None or result.get("status") not in {"done", "diverged"}:
        _unfinished(folder, trial)
    if result["status"] == "diverged":
        raise ResultsError(f"{path}: diverged in epoch {result['epoch']}; there is no student to export")
    if not folder.weights.exists():
        raise ResultsError(f"{folder.weights}: is missing; {_again(path)} trains the student anew")
    needed = {"classes", "image_shape", "mean", "std", "n_train", "n_test"}
    if missing := sorted(needed - set(result.get("data") or ())):
        raise ResultsError(
            f"{path / 'result.json'}: does not state data.{missing[0]}, as an earlier kdbench wrote it; "
            f"{_again(path)} --fresh trains the student anew"
        )
    return FinishedTrial(path, trial, result)


def _unfinished(folder: TrialFolder, trial: Mapping[str, Any]) -> NoReturn:
    error = folder.error
    if error is not None:
        raise ResultsError(
            f"{folder.path}: failed: {error.get('message', 'unknown error')}; {_again(folder.path)} tries again"
        )
    done = sum(record.get("stage") == "main" for record in folder.epochs)
    epochs = (trial.get("recipe") or {}).get("epochs", "?")
    raise ResultsError(
        f"{folder.path}: is not finished, {done} of {epochs} epochs stand; {_again(folder.path)} goes on"
    )


def _again(path: Path) -> str:
    plan = read_json(path.parent / "plan.json") or {}
    return f"kdbench run {plan.get('path', 'SUITE')}"


def _search(name: str, output: Path) -> Path:
    if not output.is_dir():
        raise ResultsError(f"{output}: no such results folder; name it with --output, or the trial by its folder")
    places: dict[str, list[Path]] = {}
    planned: dict[str, str] = {}
    for suite in sorted(path.name for path in output.iterdir() if path.is_dir() and path.name != TEACHERS):
        results = SuiteFolder(output, suite)
        for row in (results.plan or {}).get("trials", ()):
            planned[row["id"]] = _why_missing(row, results.plan or {})
        for folder in results:
            places.setdefault(folder.path.name, []).append(folder.path)
    known = sorted({*places, *planned})
    matching = [name] if name in known else [identifier for identifier in known if identifier.startswith(name)]
    if len(matching) > 1:
        raise ResultsError(f"'{name}' is the beginning of {_some(matching)}; give more of it")
    if not matching:
        raise ResultsError(f"no trial '{name}' in {output}{_hint(name, known)}")
    found = places.get(matching[0], [])
    if not found:
        raise ResultsError(f"{matching[0]}: {planned[matching[0]]}")
    done = [path for path in found if TrialFolder(path).result is not None] or found
    if len(done) > 1:
        raise ResultsError(f"{matching[0]} stands in {' and '.join(map(str, done))}; name the folder")
    return done[0]


def _why_missing(row: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    if row.get("status") == "skipped":
        return f"was skipped: {row.get('reason', '')}"
    return f"is planned, not trained; kdbench run {plan.get('path', 'SUITE')} trains it"


def _hint(name: str, known: Iterable[str]) -> str:
    ids = list(known)
    near = difflib.get_close_matches(name, ids, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    holding = [identifier for identifier in ids if name in identifier]
    if holding:
        return f"; ids that hold it: {_some(holding)}"
    return f"; known: {_some(ids)}" if ids else "; nothing was trained there"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    rest = len(names) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
