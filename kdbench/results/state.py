"""The state of each trial of a plan, from the results folder."""

from __future__ import annotations

from kdbench.results.folder import SuiteFolder
from kdbench.status import Status
from kdbench.suite.plan import Plan
from kdbench.words import plural


def with_results(plan: Plan, folder: SuiteFolder) -> Plan:
    """The plan with each trial's state as the results folder has it."""
    current = {}
    for teacher in plan.teachers:
        outcome = folder.teacher(teacher.key).result
        current[teacher.key] = outcome.sha256 if outcome else None
    trials = []
    for trial in plan.trials:
        if trial.status is Status.SKIPPED:
            trials.append(trial)
            continue
        place = folder.trial(trial.id)
        result, error = place.result, place.error
        if result is not None:
            made_with = result.teacher.sha256 if result.teacher else None
            if current[trial.teacher.key] not in (None, made_with):
                trials.append(trial.with_status(Status.PENDING, "its teacher was retrained"))
            elif result.done:
                trials.append(trial.with_status(Status.DONE))
            else:
                trials.append(trial.with_status(Status.DIVERGED, f"in epoch {result.epoch}"))
        elif damage := place.damage():
            trials.append(trial.with_status(Status.PENDING, f"damaged: {damage}"))
        elif error is not None:
            trials.append(trial.with_status(Status.FAILED, error.reason))
        elif epochs := len(place.epochs):
            trials.append(trial.with_status(Status.PENDING, f"interrupted after {plural(epochs, 'epoch')}"))
        else:
            trials.append(trial)
    return plan.with_trials(trials)
