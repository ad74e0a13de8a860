"""A trial as entries of a tracking store: parameters, tags and metrics. Pure functions, independent of the store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.results import EpochRecord, TrialRecord, TrialResult
from kdbench.results.compare import leaves

# MLflow's limits (mlflow.utils.validation) for the names of all entries, and for values.
NAME_LIMIT = 250
PARAMETER_LIMIT = 6000
TAG_LIMIT = 5000  # 8000 since MLflow 2.21, 5000 on servers before

TRIAL_ID = "kdbench.trial_id"


@dataclass(frozen=True)
class Point:
    """One value of one metric. ``elapsed`` is the training time before it, in seconds."""

    name: str
    step: int
    value: float
    elapsed: float


def entry_name(name: str) -> str:
    """``name`` as a valid MLflow name: invalid characters are replaced, and it is cut to the limit.

    >>> entry_name("settings.weight (relative)")
    'settings.weight _relative_'
    """
    # MLflow rejects names that are not normalised relative paths.
    segments = [segment for segment in re.sub(r"[^\w\-. /]", "_", name).split("/") if segment.strip(".")]
    return "/".join(segments)[:NAME_LIMIT].rstrip("/") or "_"


def entry_value(value: Any, limit: int) -> str:
    """Text unchanged, everything else as JSON; long values are truncated with an ellipsis."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parameters(trial: TrialRecord) -> dict[str, str]:
    """The entries that determine a trial's outcome: settings, recipe and data, but no label."""
    entries = trial.model_dump(include={"method", "teacher", "student", "seed", "protocol"})
    entries |= dict(leaves(trial.model_dump(include={"settings", "recipe", "data"})))
    return {entry_name(name): entry_value(value, PARAMETER_LIMIT) for name, value in entries.items()}


def trial_tags(trial: TrialRecord, environment: Mapping[str, Any]) -> dict[str, str]:
    """Tags for finding a trial, and its origin."""
    tags = {
        **name_tags(trial),
        TRIAL_ID: trial.id,
        "method": trial.method,
        "student": trial.student,
        "seed": trial.seed,
        "plugin": trial.plugin.distribution or None,
        "plugin_version": trial.plugin.version or None,
        **environment_tags(environment),
    }
    return as_tags(tags)


def name_tags(trial: TrialRecord) -> dict[str, str]:
    """The suite's names of a trial. They are not part of its identity and may change after training."""
    tags = {
        "mlflow.runName": f"{trial.label} {trial.pair} seed {trial.seed}",
        "label": trial.label,
        "teacher": trial.teacher,
        "pair": trial.pair,
    }
    return as_tags(tags)


def environment_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    """Versions, device and commit of an invocation or result."""
    commit = environment.get("git_commit")
    tags = {
        "kdbench_version": environment.get("kdbench"),
        "torch_version": environment.get("torch"),
        "python_version": environment.get("python"),
        "device": environment.get("device"),
        "precision": environment.get("precision"),
        "git_commit": commit,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "kdbench",
    }
    return as_tags(tags)


def as_tags(entries: Mapping[str, Any]) -> dict[str, str]:
    """Entries as MLflow tags, without those that are None."""
    return {entry_name(name): entry_value(value, TAG_LIMIT) for name, value in entries.items() if value is not None}


def points(records: Sequence[EpochRecord], result: TrialResult | None) -> list[Point]:
    """The metrics of a trial so far, including NaN and infinite ones.

    The step is the epoch's position in ``epochs.jsonl``, so that it increases over all stages. Metrics of stages before
    the main one have the stage's name as prefix. Metrics of the test set are ``test/top1`` and so on, those of the
    validation split ``validation/top1``, so that tuning on the test set is visible. The result's metrics have the last
    step.
    """
    found = []
    elapsed = 0.0
    for step, record in enumerate(records, start=1):
        elapsed += record.seconds
        prefix = "" if record.in_main else f"{record.stage}/"
        entries = {name: getattr(record, name) for name in ("lr", "train_loss", "seconds")} | _by_split(record)
        entries |= {f"terms/{name.replace('/', '_')}": value for name, value in record.terms.items()}
        found += [Point(entry_name(prefix + name), step, float(value), elapsed) for name, value in entries.items()]
    if result is not None:
        figures: dict[str, Any] = {"result/epoch": result.epoch}
        figures |= {f"result/{name}": value for name, value in _by_split(result).items()}
        if result.best_on_test is not None:
            figures |= {f"result/best_on_test.{name}": value for name, value in result.best_on_test}
        figures |= {f"cost/{name}": value for name, value in result.cost}
        if result.teacher is not None:
            figures |= {"teacher/test/top1": result.teacher.top1, "teacher/seconds": result.teacher.seconds}
        known = {name: value for name, value in figures.items() if value is not None}
        found += [Point(entry_name(name), len(records), float(value), elapsed) for name, value in known.items()]
    return found


def _by_split(record: EpochRecord | TrialResult) -> dict[str, float]:
    """Metrics, with the split in their names."""
    splits = {"test": record.metrics, "validation": record.validation}
    return {f"{split}/{name}": value for split, values in splits.items() for name, value in values.items()}


def not_finite(trial_points: Sequence[Point]) -> dict[str, str]:
    """A tag for each metric with NaN or infinite values, with the first such step.

    MLflow stores infinity as the largest finite number, and NaN as zero with a flag, so neither is logged.
    """
    tags: dict[str, str] = {}
    for point in trial_points:
        if not math.isfinite(point.value):
            tags.setdefault(entry_name(f"not_finite.{point.name}"), f"{point.value} at step {point.step}")
    return tags
