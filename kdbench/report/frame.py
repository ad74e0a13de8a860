"""The results folder as tidy tables: one row a trial, and one row an epoch.

A trial's state is read from its own folder, not from the plan, so that a report of a running suite is right.
Students that learnt from different weights of the "same" teacher are never compared: those under the
teacher's current weights stay, the others get the status ``stale``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from kdbench.errors import ResultsError, did_you_mean
from kdbench.report import wording
from kdbench.results import SuiteFolder, read_json
from kdbench.suite.plan import PROTOCOL

TEXT = (
    "id", "teacher", "student", "pair", "method", "label", "status", "reason", "selection", "teacher_key",
    "teacher_sha256", "plugin", "plugin_version", "settings", "data", "data_fingerprint", "device",
    "precision", "kdbench", "torch", "python", "platform", "git_commit", "started", "finished",
)  # fmt: skip
METRICS = (
    "top1", "top5", "nll", "ece", "agreement", "kl_to_teacher", "validation_top1", "best_on_test_top1",
)  # fmt: skip
"""What a diverged trial has no value of. Percent, but for ``nll`` and ``kl_to_teacher`` (nats) and ``ece`` (0 to 1)."""
REAL = (*METRICS, "teacher_top1", "seconds", "teacher_seconds", "seconds_per_step", "images_per_second")
WHOLE = (
    "seed", "epoch", "best_on_test_epoch", "peak_memory_bytes", "student_parameters", "trained_parameters",
    "adapter_parameters", "extra_epochs", "corrupt",
)  # fmt: skip
COLUMNS = (
    "id", "teacher", "student", "pair", "method", "label", "seed", "status", "reason",
    *METRICS, "best_on_test_epoch", "epoch", "selection",
    "teacher_top1", "teacher_sha256", "teacher_key",
    "seconds", "teacher_seconds", "seconds_per_step", "images_per_second", "peak_memory_bytes",
    "student_parameters", "trained_parameters", "adapter_parameters", "extra_epochs",
    "plugin", "plugin_version", "settings", "data", "data_fingerprint", "corrupt",
    "device", "precision", "kdbench", "torch", "python", "platform", "git_commit", "started", "finished",
)  # fmt: skip
"""The columns of :func:`read_trials`, in the order of ``trials.csv``."""

FINISHED = ("done", "diverged")


@dataclass(frozen=True)
class Filters:
    """Which trials to look at; an empty filter lets everything through."""

    methods: Sequence[str] = ()
    """Shell patterns, each matched against a trial's label and its method's name."""
    pairs: Sequence[str] = ()
    """``teacher:student``."""
    seeds: Sequence[int] = ()

    def keeps(self, row: Mapping[Any, Any]) -> bool:
        """Whether the trial described by ``row`` passes."""
        names = (row["label"], row["method"])
        return (
            (not self.methods or any(fnmatchcase(n, glob) for n in names for glob in self.methods))
            and (not self.pairs or f"{row['teacher']}:{row['student']}" in self.pairs)
            and (not self.seeds or row["seed"] in self.seeds)
        )

    def select(self, trials: pd.DataFrame) -> pd.DataFrame:
        """The rows that pass, numbered anew."""
        rows = trials[["label", "method", "teacher", "student", "seed"]].to_dict("records")
        kept = pd.Series([self.keeps(row) for row in rows], index=trials.index, dtype=bool)
        return trials[kept].reset_index(drop=True)

    def without_methods(self) -> Filters:
        """The same pairs and seeds, every method."""
        return Filters(pairs=self.pairs, seeds=self.seeds)

    def describe(self) -> str:
        """The filters as command-line options; empty where there are none."""
        options = [f"--method {glob}" for glob in self.methods]
        options += [f"--pair {pair}" for pair in self.pairs]
        options += [f"--seed {seed}" for seed in self.seeds]
        return " ".join(options)


def read_trials(
    folder: SuiteFolder, filters: Filters | None = None, plan: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """One row a trial of ``plan`` (:meth:`kdbench.suite.plan.Plan.record`), or of the suite as last planned.

    Rows are in the plan's order, and under its labels.

    ``status`` is ``done``, ``diverged``, ``failed``, ``skipped``, ``pending`` or ``stale``; ``reason`` says why
    where it is not ``done``. Columns: :data:`COLUMNS`; what a trial has no value of is NaN, ``<NA>`` or empty.

    Raises:
        ResultsError: nothing was planned here, another protocol version wrote it, or no trial passes the filters.
    """
    folder.check_protocol()
    plan = folder.plan if plan is None else plan
    planned = _planned(folder, plan)
    filters = filters or Filters()
    if not any(filters.keeps(row) for row in planned):
        raise ResultsError(_nothing_passes(folder, filters, planned))
    frame = _typed(pd.DataFrame([_row(folder, row) for row in planned], columns=list(COLUMNS)))
    # What is stale is decided on all trials: it must not depend on which are shown.
    return filters.select(_mark_superseded(_mark_stale(folder, frame, plan)))


def read_curves(folder: SuiteFolder, trials: pd.DataFrame) -> pd.DataFrame:
    """One row an epoch of the given trials: what ``epochs.jsonl`` says, each loss term as ``term_<name>``.

    ``epoch`` counts from 1 within its ``stage``; ``id``, ``pair``, ``label``, ``seed`` and ``status`` are the trial's.
    """
    rows = []
    for trial in trials.itertuples():
        for record in folder.trial(str(trial.id)).epochs:
            terms = record.pop("terms", None) or {}
            rows.append(
                {
                    "id": trial.id,
                    "pair": trial.pair,
                    "label": trial.label,
                    "seed": trial.seed,
                    "status": trial.status,
                    **record,
                    **{f"term_{name}": value for name, value in terms.items()},
                }
            )
    leading = ["id", "pair", "label", "seed", "status", "epoch", "stage", "top1"]
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=[*leading, *(name for name in frame.columns if name not in leading)])


def teacher_result(folder: SuiteFolder, key: str) -> dict[str, Any]:
    """What is recorded of a teacher; empty where nothing is.

    The teacher's weights may be gone: a report does not need them.
    """
    return folder.teacher(key).record or {}


def teacher_description(folder: SuiteFolder, key: str) -> dict[str, Any]:
    """``teacher.json``: what a teacher is and how it was made; empty where nothing is recorded."""
    return read_json(folder.teacher(key).path / "teacher.json") or {}


def method_order(trials: pd.DataFrame) -> list[str]:
    """The labels in the suite's order."""
    return list(dict.fromkeys(trials["label"]))


def pair_order(trials: pd.DataFrame) -> list[str]:
    """The pairs in the suite's order."""
    return list(dict.fromkeys(trials["pair"]))


def _planned(folder: SuiteFolder, plan: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if plan is not None:
        return list(plan.get("trials", []))
    # A plan can be lost and the results still stand.
    trials = [trial for place in folder if (trial := place.trial) and trial.get("protocol") == PROTOCOL]
    if not trials:
        raise ResultsError(
            f"{folder.path}: nothing to report: no plan.json and no trial in it; "
            "start with `kdbench run SUITE`, or name its --output folder"
        )
    return [{"status": "pending", "reason": "", **trial} for trial in trials]


def _nothing_passes(folder: SuiteFolder, filters: Filters, planned: Sequence[Mapping[str, Any]]) -> str:
    labels = {str(row["label"]) for row in planned}
    pairs = {f"{row['teacher']}:{row['student']}" for row in planned}
    for glob in filters.methods:
        if not any(Filters(methods=[glob]).keeps(row) for row in planned):
            return f"{folder.path}: --method {glob}: no trial of this suite{did_you_mean(glob, labels)}"
    for pair in filters.pairs:
        if pair not in pairs:
            return f"{folder.path}: --pair {pair}: no trial of this suite{did_you_mean(pair, pairs)}"
    seeds = sorted({int(row["seed"]) for row in planned})
    return f"{folder.path}: no trial passes {filters.describe() or 'an empty plan'}; its seeds: {seeds}"


def _row(folder: SuiteFolder, planned: Mapping[str, Any]) -> dict[str, Any]:
    trial = folder.trial(planned["id"])
    result = trial.result
    error = trial.error
    described = trial.trial or {}
    row: dict[str, Any] = {
        **{key: planned.get(key) for key in ("id", "teacher", "student", "method", "label", "seed")},
        "pair": f"{planned['teacher']}:{planned['student']}",
        "plugin": _get(described, "plugin", "distribution"),
        "plugin_version": _get(described, "plugin", "version"),
        "settings": json.dumps(described["settings"], sort_keys=True) if "settings" in described else "",
        "teacher_key": described.get("teacher_key"),
    }
    if result is not None:
        row |= _outcome(result)
    elif damage := trial.damage():
        row |= {"status": "pending", "reason": f"damaged: {damage}"}
    elif planned.get("status") == "skipped":
        row |= {"status": "skipped", "reason": planned.get("reason", "")}
    elif error is not None:
        row |= {"status": "failed", "reason": _why(error)}
    else:
        row |= {"status": "pending", "reason": _progress(trial.epochs)}
    return row


def _outcome(result: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "status": result["status"],
        "epoch": result.get("epoch"),
        "selection": result.get("selection"),
        "teacher_key": _get(result, "teacher", "key"),
        "teacher_top1": _get(result, "teacher", "top1"),
        "teacher_sha256": _get(result, "teacher", "sha256"),
        "data": _get(result, "data", "name"),
        "data_fingerprint": _get(result, "data", "fingerprint"),
        "corrupt": _get(result, "data", "corrupt"),
        "started": result.get("started"),
        "finished": result.get("finished"),
        "reason": "",
    }
    for key in (
        "seconds", "teacher_seconds", "seconds_per_step", "images_per_second", "peak_memory_bytes",
        "student_parameters", "trained_parameters", "adapter_parameters", "extra_epochs",
    ):  # fmt: skip
        row[key] = _get(result, "cost", key)
    for key in ("device", "precision", "kdbench", "torch", "python", "platform", "git_commit"):
        row[key] = _get(result, "environment", key)
    if result["status"] == "diverged":
        row["reason"] = f"the loss was NaN or infinite ({_place(result)})"
        return row
    row |= {key: result.get(key) for key in METRICS}
    row["best_on_test_top1"] = _get(result, "best_on_test", "top1")
    row["best_on_test_epoch"] = _get(result, "best_on_test", "epoch")
    return row


def _get(content: Mapping[str, Any], table: str, key: str) -> Any:
    inner = content.get(table)
    return inner.get(key) if isinstance(inner, Mapping) else None


def _why(error: Mapping[str, Any]) -> str:
    place = _place(error)
    said = error.get("why") or f"{error.get('type', 'error')}: {error.get('message', '')}"
    return f"{said}{f' ({place})' if place else ''}"


def _place(record: Mapping[str, Any]) -> str:
    where = [f"stage {record['stage']}"] if record.get("stage") not in {None, "", "main"} else []
    where += [f"epoch {record['epoch']}"] if record.get("epoch") else []
    return ", ".join(where)


def _progress(epochs: Sequence[Mapping[str, Any]]) -> str:
    return f"{wording.plural(len(epochs), 'epoch')} so far" if epochs else ""


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    for name in COLUMNS:
        if name in TEXT:
            frame[name] = [value if isinstance(value, str) else "" for value in frame[name]]
        elif name in REAL:
            frame[name] = pd.to_numeric(frame[name]).astype("float64")
        else:
            frame[name] = pd.to_numeric(frame[name]).astype("Int64")
    frame["seed"] = frame["seed"].astype("int64")
    return frame


def _mark_stale(folder: SuiteFolder, frame: pd.DataFrame, plan: Mapping[str, Any] | None) -> pd.DataFrame:
    keys = {teacher["name"]: teacher["key"] for teacher in (plan or {}).get("teachers", [])}
    finished = frame[frame["status"].isin(FINISHED) & (frame["teacher_sha256"] != "")]
    for (teacher, _), group in finished.groupby(["teacher", "student"]):
        current = _current_weights(folder, keys.get(teacher), group)
        others = group.index[group["teacher_sha256"] != current]
        frame.loc[others, "status"] = "stale"
        frame.loc[others, "reason"] = [
            f"learnt from other teacher weights ({sha[:8]}) than the current ones ({current[:8]})"
            for sha in frame.loc[others, "teacher_sha256"]
        ]
    return frame


def _current_weights(folder: SuiteFolder, key: str | None, finished: pd.DataFrame) -> str:
    newest = finished.sort_values(["finished", "id"]).iloc[-1]
    result = teacher_result(folder, key or str(newest["teacher_key"]))
    return str(result.get("sha256") or newest["teacher_sha256"])


def _mark_superseded(frame: pd.DataFrame) -> pd.DataFrame:
    # Without a plan, trials of earlier settings or of an earlier version of a loss stand in the folder too.
    for _, group in frame.groupby(["teacher", "student", "label", "seed"], sort=False):
        if len(group) > 1:
            earlier = group.sort_values(["finished", "id"]).index[:-1]
            frame.loc[earlier, "status"] = "stale"
            frame.loc[earlier, "reason"] = "an earlier trial of the same name"
    return frame
