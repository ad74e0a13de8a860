"""The cost of a plan: steps, and hours estimated from earlier results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from kdbench.recipe import batch_sizes
from kdbench.results.equivalent import equivalents, has_begun, later
from kdbench.results.folder import SuiteFolder
from kdbench.suite.plan import Cohort, TeacherPlan, Trial


def trained(trials: Sequence[Trial], folder: SuiteFolder) -> list[Trial]:
    """Those of open ``trials`` that will be trained; the others adopt the result of an equal training."""
    trainings = {trial.training for trial in trials if trial.training}
    done = equivalents(folder, trainings).keys()
    waiting = later(trials, folder, done)
    return [
        trial
        for trial in trials
        if trial.id not in waiting and (trial.training not in done or has_begun(folder, trial))
    ]


def steps(trials: Iterable[Trial], n_train: int) -> int:
    """Optimiser steps of the main stages."""
    return sum(len(batch_sizes(n_train, trial.recipe.batch_size)) * trial.recipe.epochs for trial in trials)


def teacher_steps(teachers: Iterable[TeacherPlan], n_train: int) -> int:
    """Optimiser steps of teachers; none for given weights."""
    recipes = [teacher.recipe for teacher in teachers if teacher.recipe is not None]
    return sum(len(batch_sizes(n_train, recipe.batch_size)) * recipe.epochs for recipe in recipes)


def teacher_hours(
    teachers: Iterable[TeacherPlan], earlier: Iterable[TeacherPlan], folder: SuiteFolder
) -> tuple[float, str] | None:
    """Hours that ``teachers`` should take, from the trained ones of ``earlier``, and on which device those were made.

    A teacher is taken to cost per epoch what others of its name did. None where there is none. See :func:`hours`.
    """
    results = [(one, one.recipe, folder.teacher(one.key).result) for one in earlier]
    done = [(one, recipe, result) for one, recipe, result in results if recipe and result is not None and result.done]
    if not done:
        return None
    device = max((result for _, _, result in done), key=lambda result: result.finished).environment.device
    measured: dict[str, list[float]] = {}
    for teacher, recipe, result in done:
        if result.environment.device == device:
            measured.setdefault(teacher.name, []).append(result.cost.seconds / recipe.epochs)
    total = 0.0
    for teacher in teachers:
        if teacher.recipe is not None:
            if teacher.name not in measured:
                return None
            total += mean(measured[teacher.name]) * teacher.recipe.epochs
    return total / 3600, device


def repeated_passes(
    cohorts: Iterable[Cohort], parts: int, n_train: int, folder: SuiteFolder
) -> tuple[int, float | None]:
    """What it costs to divide each cohort: steps of teachers that are repeated, and seconds by earlier results.

    The seconds are None if a cohort has no result. A part has at least one trial.
    """
    repeated, seconds = 0, 0.0
    known = True
    for cohort in cohorts:
        more = min(parts, len(cohort.trials)) - 1
        repeated += more * steps(cohort.trials[:1], n_train)
        results = [result for trial in cohort.trials if (result := folder.trial(trial.id).result) and result.done]
        if results:
            # Each result has its share of the time that the cohort's teacher took.
            share = mean(result.cost.teacher_seconds for result in results)
            seconds += more * share * len(cohort.trials)
        known = known and bool(results)
    return repeated, seconds if known else None


def hours(trials: Iterable[Trial], earlier: Iterable[Trial], folder: SuiteFolder) -> tuple[float, str] | None:
    """Hours that ``trials`` should take, from ``earlier`` results of their pairs, and on which device those were made.

    The device is the newest result's; what another one measured is left out. A trial is taken to cost per epoch
    what its method did on the pair, or else what the pair's methods did. None where a pair has no result.
    """
    results = [(trial, result) for trial in earlier if (result := folder.trial(trial.id).result)]
    done = [(trial, result) for trial, result in results if result.done]
    if not done:
        return None
    device = max((result for _, result in done), key=lambda result: result.finished).environment.device
    # Seconds an epoch, and epochs of stages before the main one.
    measured: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for trial, result in done:
        if result.environment.device != device:
            continue
        extra = result.cost.extra_epochs
        seconds = (result.cost.seconds + result.cost.teacher_seconds) / (trial.recipe.epochs + extra)
        for key in ((trial.pair, trial.method), (trial.pair, "")):
            measured.setdefault(key, []).append((seconds, extra))
    total = 0.0
    for trial in trials:
        known = measured.get((trial.pair, trial.method)) or measured.get((trial.pair, ""))
        if known is None:
            return None
        total += mean(seconds * (trial.recipe.epochs + extra) for seconds, extra in known)
    return total / 3600, device
