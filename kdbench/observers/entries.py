"""A trial in the words of a tracking store: parameters, tags and metrics. Pure; knows no store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

# MLflow's limits (mlflow.utils.validation) for the names of all entries, and for values.
NAME_LIMIT = 250
PARAMETER_LIMIT = 6000
TAG_LIMIT = 5000  # 8000 since MLflow 2.21, 5000 on servers before

TRIAL_ID = "kdbench.trial_id"

# Measured on the test set. Their names in a store say so, lest anybody tune on them without noticing.
ON_TEST = frozenset({"top1", "top5", "nll", "ece", "agreement", "kl_to_teacher"})


@dataclass(frozen=True)
class Point:
    """One value of one metric. ``elapsed`` is the training time before it, in seconds."""

    name: str
    step: int
    value: float
    elapsed: float


def entry_name(name: str) -> str:
    """``name`` with what MLflow does not take in names replaced, cut to its limit.

    >>> entry_name("settings.weight (relative)")
    'settings.weight _relative_'
    """
    # MLflow refuses names that are no normal relative path.
    segments = [segment for segment in re.sub(r"[^\w\-. /]", "_", name).split("/") if segment.strip(".")]
    return "/".join(segments)[:NAME_LIMIT].rstrip("/") or "_"


def entry_value(value: Any, limit: int) -> str:
    """Text as it stands, everything else as JSON; what is too long ends in an ellipsis."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables, under dotted names; lists are leaves."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parameters(trial: Mapping[str, Any]) -> dict[str, str]:
    """What decides a trial's outcome: settings, recipe and data, and no label. ``trial`` is its ``trial.json``."""
    names = ("method", "teacher", "student", "seed", "protocol")
    tables = {name: trial.get(name, {}) for name in ("settings", "recipe", "data")}
    entries = {name: trial.get(name) for name in names} | dict(flatten(tables))
    return {entry_name(name): entry_value(value, PARAMETER_LIMIT) for name, value in entries.items()}


def trial_tags(trial: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """What a trial is found by, and who made it. ``trial`` is its ``trial.json``."""
    plugin = trial.get("plugin", {})
    tags = {
        **name_tags(trial),
        TRIAL_ID: trial["id"],
        "method": trial["method"],
        "student": trial["student"],
        "seed": trial["seed"],
        "plugin": plugin.get("distribution"),
        "plugin_version": plugin.get("version"),
        **environment_tags(environment),
    }
    return as_tags(tags)


def name_tags(trial: Mapping[str, Any]) -> dict[str, str]:
    """What the suite calls a trial: no part of its identity, so it may change after the training."""
    pair = f"{trial['teacher']}:{trial['student']}"
    tags = {
        "mlflow.runName": f"{trial['label']} {pair} seed {trial['seed']}",
        "label": trial["label"],
        "teacher": trial["teacher"],
        "pair": pair,
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
    """Entries as MLflow takes tags; what is None is left out."""
    return {entry_name(name): entry_value(value, TAG_LIMIT) for name, value in entries.items() if value is not None}


def points(records: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None) -> list[Point]:
    """The metrics of a trial so far, NaN and infinite ones included.

    The step is the epoch's place in ``epochs.jsonl``, so that it goes on rising from a stage to the next; all
    stages but the main one prefix their names. What was measured on the test set is ``test/top1`` and so on,
    on the validation split ``validation/top1``. The result's figures have the last step.
    """
    found = []
    elapsed = 0.0
    for step, record in enumerate(records, start=1):
        seconds = record.get("seconds", 0.0)
        elapsed += seconds if _is_number(seconds) and math.isfinite(seconds) else 0.0
        stage = record.get("stage", "main")
        prefix = "" if stage == "main" else f"{stage}/"
        terms = {f"terms/{name.replace('/', '_')}": value for name, value in record.get("terms", {}).items()}
        entries = {name: value for name, value in record.items() if name not in {"epoch", "stage", "terms"}}
        for name, value in (entries | terms).items():
            if _is_number(value):
                found.append(Point(entry_name(prefix + _with_split(name)), step, float(value), elapsed))
    if result is not None:
        tables = {"cost", "teacher", "data", "environment"}
        figures = {f"result/{_with_split(name)}": value for name, value in result.items() if name not in tables}
        figures |= {f"cost/{name}": value for name, value in (result.get("cost") or {}).items()}
        figures |= {f"teacher/{_with_split(name)}": value for name, value in (result.get("teacher") or {}).items()}
        for name, value in flatten(figures):
            if _is_number(value):
                found.append(Point(entry_name(name), len(records), float(value), elapsed))
    return found


def _with_split(name: str) -> str:
    """A metric's name with the split that it was measured on."""
    if name in ON_TEST:
        return f"test/{name}"
    return name.replace("validation_", "validation/", 1) if name.startswith("validation_") else name


def not_finite(trial_points: Sequence[Point]) -> dict[str, str]:
    """A tag for each metric that is NaN or infinite somewhere, naming the first such step.

    MLflow stores infinity as the largest finite number and NaN as zero beside a flag, so neither is logged.
    """
    tags: dict[str, str] = {}
    for point in trial_points:
        if not math.isfinite(point.value):
            tags.setdefault(entry_name(f"not_finite.{point.name}"), f"{point.value} at step {point.step}")
    return tags


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
