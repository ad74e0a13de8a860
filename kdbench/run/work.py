"""Which trials this process trains next: it claims those of one cohort after another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from kdbench.claims import NEVER_HELD, Claim, Claims, HeldError, Holder, Standing, trials_of
from kdbench.results import Failure, SuiteFolder
from kdbench.results.equivalent import has_begun, later
from kdbench.results.state import with_results
from kdbench.status import UNFINISHED, Status
from kdbench.suite.plan import Cohort, Plan, TeacherPlan, Trial, feed_key

MOST_DEATHS = 3
"""After so many deaths in a row, without an epoch between them, a trial that was trained alone has failed."""
MOST_TRIES = 3
"""So often one process trains a trial whose result is then damaged, or whose teacher is then retrained."""


def died(deaths: int) -> str:
    """Why something is not trained again."""
    return (
        f"{deaths} processes in a row died while they trained it, and none finished an epoch; look into the system's "
        "log (for instance for a lack of memory), and run again to try once more"
    )


def trainings_of(suite: str) -> str:
    """The kind of claims of trainings whose results trials of several teachers share."""
    return f"{suite}/trainings"


def _named(trial: Trial) -> str:
    return f"{trial.label} on {trial.pair}, seed {trial.seed}"


def failures_in(plan: Plan, folder: SuiteFolder) -> dict[str, Failure | None]:
    """The records of the failed trials and teachers of a plan, by id or key."""
    trials = {trial.id: folder.trial(trial.id).error for trial in plan.trials if trial.status is Status.FAILED}
    return trials | {teacher.key: folder.teacher(teacher.key).error for teacher in plan.teachers}


@dataclass
class Part:
    """Trials of one cohort that this process has claimed."""

    cohort: Cohort
    trials: list[Trial] = field(default_factory=list)
    claims: dict[str, Claim] = field(default_factory=dict)
    trainings: list[Claim] = field(default_factory=list)
    """Of trainings whose results trials of other teachers share."""
    deaths: int = 0
    """How many processes died while they trained the only trial, if these are too many for another try."""

    def release(self) -> None:
        """Give all claims up."""
        for claim in (*self.claims.values(), *self.trainings):
            claim.release()


class Work:
    """Hands out the open trials of a suite: those that are chosen, unfinished, and not claimed by other processes.

    A cohort stays together, because its trials share the teacher's pass, unless ``parts`` is more than 1. If processes
    died while they trained it, it is divided into halves again and again: the trial that is the cause ends up alone.

    Of trials that differ only in a teacher that their training does not read, one is trained. The others are handed
    out when it has ended: to adopt its result or, if it failed, to be trained in turn. The process that trains it
    claims the training, too, so that no other process trains an equal one at the same time.
    """

    def __init__(
        self,
        claims: Claims,
        folder: SuiteFolder,
        chosen: Collection[str],
        failures: Mapping[str, Failure | None],
        prepare: Callable[[TeacherPlan], None],
        parts: int = 1,
        adoptable: Callable[[Collection[str]], Collection[str]] = lambda _: (),
    ) -> None:
        """``failures`` are those from before this invocation, which are tried again, once by all processes.

        ``prepare`` makes a teacher available, and raises :class:`HeldError` if another process trains it.
        ``adoptable`` gives those of some :attr:`Trial.training` of which this process can adopt a result.
        """
        self._claims = claims
        self._folder = folder
        self._kind = trials_of(folder.path.name)
        self._chosen = frozenset(chosen)
        self._prepare = prepare
        self._parts = parts
        self._adoptable = adoptable
        self._adopts: Collection[str] = ()
        self._tries: Counter[str] = Counter()
        self._failures = failures
        self.elsewhere: dict[str, Holder] = {}
        """The ids of open trials that other processes train, at the last look."""
        self.awaited: dict[str, Holder] = {}
        """The names of teachers that other processes train, and free trials wait for, at the last look."""
        self.shared: dict[str, Holder] = {}
        """What other processes train, and trials wait for to adopt its result, at the last look."""
        self.contested = False
        """Whether at the last look another process was choosing from the same cohort."""

    def open(self, plan: Plan) -> list[Trial]:
        """The chosen trials that are still to be trained, by whomever."""
        return [trial for trial in plan.trials if self._is_open(trial)]

    def _is_open(self, trial: Trial) -> bool:
        if trial.id not in self._chosen or trial.status not in UNFINISHED:
            return False
        if trial.status is not Status.FAILED:
            return self._tries[trial.id] < MOST_TRIES
        known = trial.id in self._failures and not self._tries[trial.id]
        return known and self._folder.trial(trial.id).error == self._failures[trial.id]

    def take(self, plan: Plan) -> Part | None:
        """The next trials to train; None if none are free."""
        self.elsewhere, self.awaited, self.shared, self.contested = {}, {}, {}, False
        standings = self._claims.standings(self._kind)
        waiting = self._waiting(plan)
        for cohort in plan.cohorts:
            free = []
            for trial in filter(self._is_open, cohort.trials):
                holder = standings.get(trial.id, NEVER_HELD).holder
                if holder is not None:
                    self.elsewhere[trial.id] = holder
                elif trial.id not in waiting:
                    free.append(trial)
            if not free:
                continue
            try:
                self._prepare(cohort.teacher)
            except HeldError as held:
                self.awaited[cohort.teacher.shown] = held.holder
                continue
            if part := self._take_from(cohort, plan.with_trials(free)):
                return part
        for first in waiting.values():
            if first.id in self.elsewhere:
                self.shared[_named(first)] = self.elsewhere[first.id]
            else:
                # It was free, but has been taken, or has ended, since the plan was made.
                self.contested = True
        return None

    def _waiting(self, plan: Plan) -> dict[str, Trial]:
        """The open trials that wait for the result of another one, by id, each with that one."""
        untaught = {trial.id: trial for trial in plan.trials if trial.training and self._is_open(trial)}
        trainings = {trial.training for trial in untaught.values()}
        self._adopts = self._adoptable(trainings) if trainings else ()
        return {name: untaught[first] for name, first in later(untaught.values(), self._folder, self._adopts).items()}

    def _claim_training(self, trial: Trial, part: Part) -> bool:
        """Claim the training of a trial that is not adopted; False if another process trains an equal one."""
        if not trial.training or trial.training in self._adopts:
            return True
        try:
            part.trainings.append(self._claims.claim(trainings_of(self._folder.path.name), trial.training))
        except HeldError as held:
            if not has_begun(self._folder, trial):
                self.shared[_named(trial)] = held.holder
                return False
        return True

    def _take_from(self, cohort: Cohort, free: Plan) -> Part | None:
        try:
            # Two processes that chose at the same time would divide the cohort between them.
            gate = self._claims.claim(f"{self._folder.path.name}/cohorts", feed_key(cohort.trials[0]))
        except HeldError:
            self.contested = True
            return None
        try:
            # They may have been claimed, or trained, since the plan was made.
            standings = self._claims.standings(self._kind)
            chosen = self._choose(cohort, with_results(free, self._folder).trials, standings)
            holders = {trial.id: standings.get(trial.id, NEVER_HELD).holder for trial in free.trials}
            self.elsewhere |= {key: holder for key, holder in holders.items() if holder is not None}
            part = Part(cohort)
            for trial, known, epochs in chosen:
                trainings = len(part.trainings)
                if not self._claim_training(trial, part):
                    continue
                claim = self._claims.take(self._kind, trial.id, known, len(chosen), epochs)
                if claim is None:
                    self.contested = True
                    for training in part.trainings[trainings:]:
                        training.release()
                    continue
                self._tries[trial.id] += 1
                part.claims[trial.id] = claim
                part.trials.append(trial)
                if known.entry.together == 1 and claim.entry.deaths >= MOST_DEATHS:
                    part.deaths = claim.entry.deaths
        finally:
            gate.release()
        if not part.trials:
            part.release()
            return None
        return part

    def _choose(
        self, cohort: Cohort, trials: Sequence[Trial], standings: Mapping[str, Standing]
    ) -> list[tuple[Trial, Standing, int]]:
        """The trials to be trained together, each with its standing and its number of finished epochs."""
        most = math.ceil(sum(trial.id in self._chosen for trial in cohort.trials) / self._parts)
        chosen: list[tuple[Trial, Standing, int]] = []
        for trial in filter(self._is_open, trials):
            known = standings.get(trial.id, NEVER_HELD)
            if known.holder is not None:
                continue
            epochs = len(self._folder.trial(trial.id).epochs)
            # One death may be chance, as a machine that was switched off.
            if known.deaths(epochs) > 1:
                most = min(most, max(1, math.ceil(known.entry.together / 2)))
            if len(chosen) < most:
                chosen.append((trial, known, epochs))
        return chosen[:most]

    def add(self, part: Part, trial: Trial) -> bool:
        """Claim one more trial of a part's cohort, which turned out to be stale; False if it is not free."""
        try:
            part.claims[trial.id] = self._claims.claim(self._kind, trial.id, len(self._folder.trial(trial.id).epochs))
        except HeldError:
            return False
        return True
