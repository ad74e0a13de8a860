"""Why a trial is pending: by comparison with the nearest trial of the same student and method in the results folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.results.compare import changes, differences, read_teacher
from kdbench.results.folder import SuiteFolder
from kdbench.suite.plan import Plan, Trial
from kdbench.words import listed

_SHOWN = 3


def explain(plan: Plan, folder: SuiteFolder) -> Plan:
    """The plan, with a reason for each pending trial; only small records are read."""
    if not any(trial.status == "pending" for trial in plan.trials):
        return plan
    stored = [record for place in folder if (record := place.trial) is not None]
    planned = {trial.id for trial in plan.trials}
    earlier = [record for record in stored if record.get("id") not in planned]
    missing = {teacher.key for teacher in plan.teachers if folder.teacher(teacher.key).result is None}
    trials = []
    for trial in plan.trials:
        if trial.status == "pending":
            reason = trial.reason or _why(trial, stored, earlier, folder.output)
            if trial.reason and trial.teacher.key in missing:
                reason += "; its teacher is missing"
            trial = trial.with_status("pending", reason)
        trials.append(trial)
    return plan.with_trials(trials)


def _why(trial: Trial, stored: Sequence[Mapping[str, Any]], earlier: Sequence[Mapping[str, Any]], output: Path) -> str:
    now = json.loads(json.dumps(trial.to_json()))
    names = ("student", "method", "teacher_model", "seed")
    alike = [other for other in earlier if all(other.get(name) == now[name] for name in names)]
    if not alike:
        others = (other for other in stored if all(other.get(name) == now[name] for name in names[:-1]))
        another_seed = any(other.get("id") != trial.id and not differences(other, now) for other in others)
        return "new seed" if another_seed else "new"
    nearest = min(alike, key=lambda other: sum(map(len, differences(other, now).values())))
    found = differences(nearest, now)
    reasons = []
    if "protocol" in found.get("trial", {}):
        reasons.append(f"trained under protocol {nearest.get('protocol')}")
    for aspect in ("settings", "recipe", "data"):
        if aspect in found:
            reasons.append(f"new {aspect} ({listed(list(found[aspect]), _SHOWN)})")
    source = found.get("source", {})
    if "fingerprint" in source:
        reasons.append("new source")
    if "student_source" in source:
        reasons.append("new source of the student")
    if "teacher" in found:
        changed = _teacher_changes(trial, read_teacher(output, str(nearest.get("teacher_key"))))
        if changed is None:
            reasons.append("new teacher")
        elif changed:
            reasons.append(f"new teacher ({listed(changed, _SHOWN)})")
    return "; ".join(reasons) or "new"


def _teacher_changes(trial: Trial, earlier: Mapping[str, Any]) -> list[str] | None:
    """What is new of the teacher, beside what is new of the data; None where that is not known."""
    teacher = trial.teacher
    recipe = teacher.recipe.model_dump(mode="json") if teacher.recipe else None
    now = {"recipe": recipe, "data": dict(teacher.data), "weights": teacher.weights, "seed": teacher.seed}
    found = changes({key: earlier.get(key) for key in now}, json.loads(json.dumps(now))) if earlier else {}
    if not found:
        return None
    return [key.removeprefix("recipe.") for key in found if not key.startswith("data.")]
