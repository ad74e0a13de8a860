"""Why a trial is pending: by comparison with the nearest trial of the same student and method in the results folder."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.results.compare import changes, differences
from kdbench.results.folder import SuiteFolder
from kdbench.results.record import TeacherRecord, TrialRecord
from kdbench.status import Status
from kdbench.suite.plan import Plan, Trial
from kdbench.words import listed

_SHOWN = 3


def explain(plan: Plan, folder: SuiteFolder) -> Plan:
    """The plan, with a reason for each pending trial; only small records are read."""
    if not any(trial.status is Status.PENDING for trial in plan.trials):
        return plan
    stored = [record for place in folder if (record := place.description) is not None]
    planned = {trial.id for trial in plan.trials}
    earlier = [record for record in stored if record.id not in planned]
    missing = {teacher.key for teacher in plan.teachers if folder.teacher(teacher.key).result is None}
    trials = []
    for trial in plan.trials:
        if trial.status is Status.PENDING:
            reason = trial.reason or _why(trial, stored, earlier, folder)
            if trial.reason and trial.teacher.key in missing:
                reason += "; its teacher is missing"
            trial = trial.with_status(Status.PENDING, reason)
        trials.append(trial)
    return plan.with_trials(trials)


def _why(trial: Trial, stored: Sequence[TrialRecord], earlier: Sequence[TrialRecord], folder: SuiteFolder) -> str:
    now = TrialRecord.of(trial)
    names = ("student", "method", "teacher_model", "seed")
    alike = [other for other in earlier if all(getattr(other, name) == getattr(now, name) for name in names)]
    if not alike:
        others = (other for other in stored if all(getattr(other, name) == getattr(now, name) for name in names[:-1]))
        another_seed = any(other.id != trial.id and not differences(other, now) for other in others)
        return "new seed" if another_seed else "new"
    nearest = min(alike, key=lambda other: sum(map(len, differences(other, now).values())))
    found = differences(nearest, now)
    reasons = []
    if "protocol" in found.get("trial", {}):
        reasons.append(f"trained under protocol {nearest.protocol}")
    for aspect in ("settings", "recipe", "data"):
        if aspect in found:
            reasons.append(f"new {aspect} ({listed(list(found[aspect]), _SHOWN)})")
    source = found.get("source", {})
    if "fingerprint" in source:
        reasons.append("new source")
    if "student_source" in source:
        reasons.append("new source of the student")
    parts = [key.removeprefix("part_sources.") for key in source if key.startswith("part_sources.")]
    if parts:
        reasons.append(f"new source of the recipe's {listed(parts, _SHOWN)}")
    if "teacher" in found:
        key = nearest.teacher_key
        changed = _teacher_changes(trial, folder.teacher(key).description if key else None)
        if changed is None:
            reasons.append("new teacher")
        elif changed:
            reasons.append(f"new teacher ({listed(changed, _SHOWN)})")
    return "; ".join(reasons) or "new"


def _teacher_changes(trial: Trial, earlier: TeacherRecord | None) -> list[str] | None:
    """What changed in the teacher, other than the data; None if unknown."""
    if earlier is None:
        return None
    identity = {"recipe", "data", "weights", "seed"}
    now = TeacherRecord.of(trial.teacher)
    found = changes(earlier.model_dump(include=identity), now.model_dump(include=identity))
    if not found:
        return None
    return [key.removeprefix("recipe.") for key in found if not key.startswith("data.")]
