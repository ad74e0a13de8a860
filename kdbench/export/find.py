"""Finds the folder of a finished trial with a student; see :mod:`kdbench.results.find`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kdbench.errors import ResultsError
from kdbench.hookspecs import MetricSpec
from kdbench.metrics import METRICS
from kdbench.results import (
    DataUsed,
    PlanRecord,
    SuiteFolder,
    TrialFolder,
    TrialRecord,
    TrialResult,
    again,
    find_folder,
    parse_json,
)
from kdbench.suite.plan import PROTOCOL


@dataclass(frozen=True)
class FinishedTrial:
    """A finished trial, read from its folder."""

    path: Path
    trial: TrialRecord
    result: TrialResult

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.trial.id

    @property
    def data(self) -> DataUsed:
        """The data set: classes, image shape, channel statistics, fingerprint."""
        return self.result.data

    @property
    def weights(self) -> Path:
        """``student.safetensors``."""
        return TrialFolder(self.path).weights

    @property
    def metrics(self) -> dict[str, MetricSpec]:
        """The metrics of its suite, by name."""
        plan = _plan(self.path)
        return {**METRICS, **{metric.name: metric.spec for metric in (plan.metrics if plan else ())}}

    @property
    def suite_plugins(self) -> list[Path]:
        """The local plugin files that the trial's suite names, if they still exist."""
        plan = _plan(self.path)
        if plan is None:
            return []
        named = plan.suite.get("plugins") or ()
        folder = Path(plan.path or "").parent
        return [folder / name for name in named if (folder / name).is_file()]


def find_trial(name: str | Path, output: Path) -> FinishedTrial:
    """The finished trial ``name``: a folder, an id, or a unique prefix of an id below ``output``.

    Raises :class:`ResultsError` if it does not exist or has no student.
    """
    return read_finished(find_folder(name, output))


def read_finished(path: Path) -> FinishedTrial:
    """The content of a trial's folder. Raises :class:`ResultsError` if there is no student."""
    folder = TrialFolder(path)
    trial, result = folder.description, folder.recorded
    if trial is None:
        # Files of the first protocol have no checksum.
        unchecked, wrong = parse_json(path / "trial.json")
        if unchecked and unchecked.get("protocol") != PROTOCOL:
            raise _other_protocol(path, unchecked.get("protocol"))
        if wrong or unchecked:
            raise ResultsError(f"{path}: damaged: {wrong or 'trial.json does not match its checksum'}")
        if (path / "teacher.json").exists():
            raise ResultsError(f"{path}: is the folder of a teacher; only students can be exported")
        raise ResultsError(f"{path}: contains no trial.json; name a trial's folder, runs/<suite>/<trial id>")
    if trial.protocol != PROTOCOL:
        raise _other_protocol(path, trial.protocol)
    if damage := folder.damage(thorough=True):
        raise ResultsError(f"{path}: damaged: {damage}; remove the folder, and {_again(path)} retrains the student")
    if result is None:
        _unfinished(folder, trial)
    if not result.done:
        raise ResultsError(f"{path}: diverged in epoch {result.epoch}; there is no student to export")
    needed = {"classes", "image_shape", "mean", "std", "n_train", "n_test"}
    if missing := sorted(needed - result.data.model_fields_set):
        raise ResultsError(
            f"{path / 'result.json'}: data.{missing[0]} is missing, written by an earlier kdbench; "
            f"remove the folder, and {_again(path)} retrains the student"
        )
    return FinishedTrial(path, trial, result)


def _other_protocol(path: Path, protocol: object) -> ResultsError:
    return ResultsError(
        f"{path}: written under protocol {protocol}, this kdbench has protocol {PROTOCOL}; "
        "export it with the kdbench that trained it"
    )


def _unfinished(folder: TrialFolder, trial: TrialRecord) -> NoReturn:
    error = folder.error
    if error is not None:
        raise ResultsError(f"{folder.path}: failed: {error.message}; {_again(folder.path)} tries again")
    done = sum(record.in_main for record in folder.epochs)
    epochs = trial.recipe.get("epochs", "?")
    raise ResultsError(
        f"{folder.path}: is not finished (epochs done: {done} of {epochs}); {_again(folder.path)} resumes it"
    )


def _again(path: Path) -> str:
    return again(_plan(path))


def _plan(trial: Path) -> PlanRecord | None:
    """The plan of the suite of a trial's folder."""
    suite = trial.absolute().parent
    return SuiteFolder(suite.parent, suite.name).plan
