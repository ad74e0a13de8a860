"""Finished trials that another trial can adopt, and of several open ones the one that is trained.

Trials of one :attr:`~kdbench.suite.plan.Trial.training` differ only in a teacher that their training does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from kdbench.results.folder import SuiteFolder, TrialFolder
from kdbench.results.record import TrialResult
from kdbench.suite.plan import Trial

Usable = Callable[[str, TrialResult], bool]
"""Whether the result of a training may be adopted here."""


def equivalents(
    folder: SuiteFolder, trainings: Collection[str], usable: Usable = lambda *_: True
) -> dict[str, list[TrialFolder]]:
    """The finished trials in ``folder`` with one of these trainings, by training; trained ones before adopted ones."""
    found: dict[str, list[tuple[bool, TrialFolder]]] = {}
    for place in folder if trainings else ():
        if not (place.path / "result.json").exists():
            continue
        record = place.description
        if record is None or record.training not in trainings or record.computed_id != place.identifier:
            continue
        result = place.result
        if result is not None and usable(record.training, result):
            found.setdefault(record.training, []).append((result.adopted_from is not None, place))
    return {
        training: [place for _, place in sorted(places, key=lambda one: (one[0], one[1].path.name))]
        for training, places in found.items()
    }


def has_begun(folder: SuiteFolder, trial: Trial) -> bool:
    """Whether there is a checkpoint from which the trial will resume."""
    return folder.trial(trial.id).checkpoint.exists()


def later(trials: Iterable[Trial], folder: SuiteFolder, done: Collection[str]) -> dict[str, str]:
    """The ids of open ``trials`` that wait for another one's result, each with the id of that one.

    Of one training, the first trial is trained, or one that has begun already. None wait if there is a result that can
    be adopted: ``done`` are the trainings of those.
    """
    open_trials = [trial for trial in trials if trial.training and trial.training not in done]
    begun = {trial.id for trial in open_trials if has_begun(folder, trial)}
    first: dict[str, str] = {}
    for trial in sorted(open_trials, key=lambda trial: trial.id not in begun):
        first.setdefault(trial.training, trial.id)
    return {
        trial.id: first[trial.training]
        for trial in open_trials
        if trial.id not in begun and first[trial.training] != trial.id
    }
