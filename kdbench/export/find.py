"""From what a user calls a trial to its folder, if there is a student in it; see :mod:`kdbench.results.find`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kdbench.errors import ResultsError
from kdbench.results import TrialFolder, again, find_folder, parse_json, read_json
from kdbench.suite.plan import PROTOCOL


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
    return read_finished(find_folder(name, output))


def read_finished(path: Path) -> FinishedTrial:
    """What stands in a trial's folder. Raises :class:`ResultsError` where that is no student."""
    folder = TrialFolder(path)
    trial, result = folder.trial, folder.record
    if trial is None:
        # Those of the first protocol have no checksum.
        unchecked, wrong = parse_json(path / "trial.json")
        if wrong or (unchecked and unchecked.get("protocol") == PROTOCOL):
            raise ResultsError(f"{path}: damaged: {wrong or 'trial.json does not match its checksum'}")
        trial = unchecked
    if trial is None:
        if (path / "teacher.json").exists():
            raise ResultsError(f"{path}: is a teacher's folder; students alone are exported")
        raise ResultsError(f"{path}: holds no trial.json; name a trial's folder, runs/<suite>/<trial id>")
    if trial.get("protocol") != PROTOCOL:
        raise ResultsError(
            f"{path}: written under protocol {trial.get('protocol')}, this kdbench has protocol {PROTOCOL}; "
            "export it with the kdbench that trained it"
        )
    if damage := folder.damage(thorough=True):
        raise ResultsError(f"{path}: damaged: {damage}; remove the folder, and {_again(path)} trains the student again")
    if result is None:
        _unfinished(folder, trial)
    if result["status"] == "diverged":
        raise ResultsError(f"{path}: diverged in epoch {result['epoch']}; there is no student to export")
    needed = {"classes", "image_shape", "mean", "std", "n_train", "n_test"}
    if missing := sorted(needed - set(result.get("data") or ())):
        raise ResultsError(
            f"{path / 'result.json'}: does not state data.{missing[0]}, as an earlier kdbench wrote it; "
            f"remove the folder, and {_again(path)} trains the student again"
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
        f"{folder.path}: is not finished (epochs done: {done} of {epochs}); {_again(folder.path)} continues it"
    )


def _again(path: Path) -> str:
    return again(read_json(path.parent / "plan.json") or {})
