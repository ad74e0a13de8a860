"""What a plan costs: steps, and hours as far as earlier results tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import mean

from kdbench.results import SuiteFolder
from kdbench.suite.plan import Trial


def steps(trials: Iterable[Trial], n_train: int) -> int:
    """Optimiser steps of the main stages."""
    return sum(math.ceil(n_train / trial.recipe.batch_size) * trial.recipe.epochs for trial in trials)


def hours(trials: Iterable[Trial], earlier: Iterable[Trial], folder: SuiteFolder) -> float | None:
    """Hours that ``trials`` should take, from ``earlier`` results of their pairs; None where a pair has none.

    A trial is taken to cost per epoch what its method did on the pair, or else what the pair's methods did.
    """
    # Seconds an epoch, and epochs of stages before the main one.
    measured: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for trial in earlier:
        result = folder.trial(trial.id).result
        if result is not None and result["status"] == "done":
            cost: Mapping[str, float] = result["cost"]
            extra = int(cost["extra_epochs"])
            seconds = (cost["seconds"] + cost["teacher_seconds"]) / (trial.recipe.epochs + extra)
            for key in ((trial.pair, trial.method), (trial.pair, "")):
                measured.setdefault(key, []).append((seconds, extra))
    total = 0.0
    for trial in trials:
        known = measured.get((trial.pair, trial.method)) or measured.get((trial.pair, ""))
        if known is None:
            return None
        total += mean(seconds * (trial.recipe.epochs + extra) for seconds, extra in known)
    return total / 3600
