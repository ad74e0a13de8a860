"""The results folder as tidy tables: one row per trial, and one row per epoch.

The state of a trial is read from its folder, not from the plan, so that the report of a running suite is correct.
Students trained with different weights of the "same" teacher are never compared: those trained with other weights
than the current ones get the status ``stale``.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from itertools import repeat
from sys import intern
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import ResultsError, did_you_mean
from kdbench.metrics import METRICS
from kdbench.report import wording
from kdbench.results import EpochRecord, PlannedTrial, PlanRecord, SuiteFolder, TrialFolder, TrialResult
from kdbench.results.record import MAIN
from kdbench.status import FINISHED, Status
from kdbench.suite.filters import Filters
from kdbench.suite.plan import PROTOCOL

TEXT = (
    "id", "teacher", "student", "pair", "method", "label", "status", "reason", "selection", "teacher_key",
    "teacher_sha256", "student_sha256", "plugin", "plugin_version", "settings", "data", "data_fingerprint", "device",
    "precision", "kdbench", "torch", "python", "platform", "git_commit", "started", "finished",
    "adopted_from",
)  # fmt: skip
BY_EPOCH = ("validation_top1", "best_on_test_top1")
"""Accuracies in percent that select an epoch, or could select it."""
REAL = (*METRICS, *BY_EPOCH, "teacher_top1", "seconds", "teacher_seconds", "seconds_per_step", "images_per_second")
WHOLE = (
    "seed", "epoch", "best_on_test_epoch", "peak_memory_bytes", "student_parameters", "trained_parameters",
    "adapter_parameters", "extra_epochs", "corrupt",
)  # fmt: skip
_BEFORE = (
    "id", "teacher", "student", "pair", "method", "label", "seed", "status", "reason",
)  # fmt: skip
_AFTER = (
    *BY_EPOCH, "best_on_test_epoch", "epoch", "selection",
    "teacher_top1", "teacher_sha256", "teacher_key", "student_sha256",
    "seconds", "teacher_seconds", "seconds_per_step", "images_per_second", "peak_memory_bytes",
    "student_parameters", "trained_parameters", "adapter_parameters", "extra_epochs",
    "plugin", "plugin_version", "settings", "data", "data_fingerprint", "corrupt",
    "device", "precision", "kdbench", "torch", "python", "platform", "git_commit", "started", "finished",
    "adopted_from",
)  # fmt: skip


def columns(added: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns of :func:`read_trials`, in the order of ``trials.csv``; ``added`` are the suite's further metrics."""
    return (*_BEFORE, *METRICS, *added, *_AFTER)


COLUMNS = columns()
"""The columns without added metrics."""


def read_trials(folder: SuiteFolder, filters: Filters | None = None, plan: PlanRecord | None = None) -> pd.DataFrame:
    """One row per trial of ``plan``, or of the suite as last planned.

    Rows have the order and the labels of the plan.

    ``status`` is a :class:`kdbench.status.Status`; ``reason`` explains any status but ``done``. Columns:
    :func:`columns`; missing values are NaN, ``<NA>`` or empty.

    Raises:
        ResultsError: nothing was planned here, another protocol version wrote it, or no trial passes the filters.
    """
    folder.check_protocol()
    plan = folder.plan if plan is None else plan
    planned = _planned(folder, plan)
    filters = filters or Filters()
    if not any(map(filters.match, planned)):
        raise ResultsError(_nothing_passes(folder, filters, planned))
    added = added_metrics(plan)
    rows = [_row(folder, row) for row in planned]
    frame = _typed(pd.DataFrame(rows, columns=list(columns(added))), added)
    # Mark stale trials before filtering: the status must not depend on the filters.
    return select(_mark_superseded(_mark_stale(folder, frame, plan)), filters)


def select(trials: pd.DataFrame, filters: Filters) -> pd.DataFrame:
    """The rows that ``filters`` mean, with a new index."""
    meant = pd.Series([filters.match(row) for row in trials.itertuples()], index=trials.index, dtype=bool)
    return trials[meant].reset_index(drop=True)


def read_curves(folder: SuiteFolder, trials: pd.DataFrame) -> pd.DataFrame:
    """One row per epoch of the given trials, from ``epochs.jsonl``; each loss term as ``term_<name>``.

    ``epoch`` counts from 1 within its ``stage``; ``id``, ``pair``, ``label``, ``seed`` and ``status`` are the trial's.
    """
    counts: list[int] = []
    stages: list[str] = []
    epochs = array("q")
    # By column: with a dictionary for each epoch, a large suite takes several times the time and the memory.
    measured: dict[str, array[float]] = {"top1": array("d")}
    for identifier in trials["id"]:
        records = folder.trial(str(identifier)).epochs
        for name, values in _columns_of(records).items():
            column = measured.setdefault(name, array("d"))
            _pad(column, len(epochs))
            column.extend(values)
        counts.append(len(records))
        stages += [intern(record.stage) for record in records]
        epochs.extend(record.epoch for record in records)
    for column in measured.values():
        _pad(column, len(epochs))
    own = {name: np.repeat(trials[name].to_numpy(), counts) for name in ("id", "pair", "label", "seed", "status")}
    numbers = {name: np.asarray(column) for name, column in measured.items()}
    return pd.DataFrame({**own, "epoch": np.asarray(epochs), "stage": stages, **numbers}, copy=False)


def _pad(column: array[float], size: int) -> None:
    """Fill a column with missing values."""
    column.extend(repeat(math.nan, size - len(column)))


def _columns_of(records: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """The numbers of a trial's epochs, by column."""
    found = {
        "lr": [record.lr for record in records],
        "train_loss": [record.train_loss for record in records],
        "seconds": [record.seconds for record in records],
    }
    for prefix, field in (("", "metrics"), ("validation_", "validation"), ("term_", "terms")):
        given: list[dict[str, float]] = [getattr(record, field) for record in records]
        for name in dict.fromkeys(name for values in given for name in values):
            found[prefix + name] = [values.get(name, math.nan) for values in given]
    return found


def method_order(trials: pd.DataFrame) -> list[str]:
    """The labels in the suite's order."""
    return list(dict.fromkeys(trials["label"]))


def pair_order(trials: pd.DataFrame) -> list[str]:
    """The pairs in the suite's order."""
    return list(dict.fromkeys(trials["pair"]))


def _planned(folder: SuiteFolder, plan: PlanRecord | None) -> Sequence[PlannedTrial]:
    if plan is not None:
        return plan.trials
    # The results may be kept without the plan.
    trials = [trial for place in folder if (trial := place.description) and trial.protocol == PROTOCOL]
    if not trials:
        raise ResultsError(
            f"{folder.path}: nothing to report: no plan.json and no trial in it; "
            "start with `kdbench run SUITE`, or name its --output folder"
        )
    return [PlannedTrial.of(trial) for trial in trials]


def _nothing_passes(folder: SuiteFolder, filters: Filters, planned: Sequence[PlannedTrial]) -> str:
    labels = {row.label for row in planned}
    pairs = {row.pair for row in planned}
    for glob in filters.methods:
        if not any(map(Filters(methods=[glob]).match, planned)):
            return f"{folder.path}: --method {glob}: no trial of this suite{did_you_mean(glob, labels)}"
    for pair in filters.pairs:
        if pair not in pairs:
            return f"{folder.path}: --pair {pair}: no trial of this suite{did_you_mean(pair, pairs)}"
    seeds = sorted({row.seed for row in planned})
    return f"{folder.path}: no trial passes {filters.describe() or 'an empty plan'}; its seeds: {seeds}"


def _row(folder: SuiteFolder, planned: PlannedTrial) -> dict[str, Any]:
    place = folder.trial(planned.id)
    result, error, trial = place.result, place.error, place.description
    row: dict[str, Any] = planned.model_dump(include={"id", "teacher", "student", "method", "label", "seed"})
    row["pair"] = planned.pair
    if trial is not None:
        row |= {
            "plugin": trial.plugin.distribution,
            "plugin_version": trial.plugin.version,
            "settings": json.dumps(trial.settings, sort_keys=True) if "settings" in trial.model_fields_set else "",
            "teacher_key": trial.teacher_key,
        }
    if result is not None:
        row |= _outcome(result)
    elif damage := place.damage():
        row |= {"status": Status.PENDING, "reason": f"damaged: {damage}"}
    elif planned.status is Status.SKIPPED:
        row |= {"status": Status.SKIPPED, "reason": planned.reason}
    elif error is not None:
        at = _place(error.stage, error.epoch)
        row |= {"status": Status.FAILED, "reason": f"{error.reason}{f' ({at})' if at else ''}"}
    else:
        row |= {"status": Status.PENDING, "reason": _progress(place.epochs)}
    return row


def _outcome(result: TrialResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "status": result.status,
        "epoch": result.epoch,
        "selection": result.selection,
        "data": result.data.name,
        "data_fingerprint": result.data.fingerprint,
        "corrupt": result.data.corrupt,
        "started": result.started,
        "finished": result.finished,
        "adopted_from": result.adopted_from,
        "reason": "",
        **result.cost.model_dump(),
        **result.environment.model_dump(),
    }
    if result.teacher is not None:
        row |= {f"teacher_{name}": getattr(result.teacher, name) for name in ("key", "top1", "sha256")}
    if not result.done:
        row["reason"] = f"the loss was NaN or infinite ({_place(result.stage, result.epoch)})"
        return row
    row |= {**result.metrics, "validation_top1": result.validation_top1}
    if (weights := result.files.get(TrialFolder.weights_name)) is not None:
        row["student_sha256"] = weights.sha256
    if result.best_on_test is not None:
        row |= {f"best_on_test_{name}": value for name, value in result.best_on_test}
    return row


def _place(stage: str, epoch: int) -> str:
    where = [] if stage in {"", MAIN} else [f"stage {stage}"]
    return ", ".join([*where, f"epoch {epoch}"] if epoch else where)


def _progress(epochs: Sequence[EpochRecord]) -> str:
    return f"{wording.plural(len(epochs), 'epoch')} so far" if epochs else ""


def added_metrics(plan: PlanRecord | None) -> tuple[str, ...]:
    """The metrics that a plan's suite adds to the built-in ones."""
    return tuple(metric.name for metric in plan.metrics) if plan is not None else ()


def _typed(frame: pd.DataFrame, added: Sequence[str]) -> pd.DataFrame:
    for name in frame.columns:
        if name in TEXT:
            frame[name] = [value if isinstance(value, str) else "" for value in frame[name]]
        elif name in REAL or name in added:
            frame[name] = pd.to_numeric(frame[name]).astype("float64")
        else:
            frame[name] = pd.to_numeric(frame[name]).astype("Int64")
    frame["seed"] = frame["seed"].astype("int64")
    return frame


def _mark_stale(folder: SuiteFolder, frame: pd.DataFrame, plan: PlanRecord | None) -> pd.DataFrame:
    planned = {teacher.key for teacher in plan.teachers} if plan else set()
    finished = frame[frame["status"].isin(FINISHED) & (frame["teacher_sha256"] != "")]
    teachers = [
        # Trials without a plan: those of one teacher are known by its seed, whatever its recipe was.
        row.teacher_key if row.teacher_key in planned else f"seed {_teacher_seed(folder, str(row.id))}"
        for row in finished.itertuples()
    ]
    for (_, _, key), group in finished.groupby(["teacher", "student", pd.Series(teachers, finished.index, dtype=str)]):
        current = _current_weights(folder, key if key in planned else None, group)
        others = group.index[group["teacher_sha256"] != current]
        frame.loc[others, "status"] = Status.STALE
        frame.loc[others, "reason"] = [
            f"trained with other teacher weights ({sha[:8]}) than the current ones ({current[:8]})"
            for sha in frame.loc[others, "teacher_sha256"]
        ]
    return frame


def _teacher_seed(folder: SuiteFolder, identifier: str) -> int | None:
    result = folder.trial(identifier).recorded
    return result.teacher.seed if result is not None and result.teacher is not None else None


def _current_weights(folder: SuiteFolder, key: str | None, finished: pd.DataFrame) -> str:
    newest = finished.sort_values(["finished", "id"]).iloc[-1]
    # The weights may be missing: a report does not need them.
    result = folder.teacher(key or str(newest["teacher_key"])).recorded
    return str((result and result.sha256) or newest["teacher_sha256"])


def _mark_superseded(frame: pd.DataFrame) -> pd.DataFrame:
    # Without a plan, the folder may also contain trials of earlier settings or of an earlier version of a loss.
    for _, group in frame.groupby(["teacher", "student", "label", "seed"], sort=False):
        if len(group) > 1:
            earlier = group.sort_values(["finished", "id"]).index[:-1]
            frame.loc[earlier, "status"] = Status.STALE
            frame.loc[earlier, "reason"] = "an earlier trial of the same name"
    return frame
