"""Trains the claimed students of a cohort: builds, resumes and trains them in lockstep."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch

from kdbench.data.feed import Feed
from kdbench.engine import teacher as teachers
from kdbench.engine.cohort import Interrupted, Lockstep
from kdbench.engine.device import Precision
from kdbench.engine.failure import failure
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.errors import DataError, ResultsError, TeacherMismatchError, in_words
from kdbench.isolation import Originals, contained
from kdbench.method import DataSignature, set_up
from kdbench.models.base import signature
from kdbench.results import TrialFolder, TrialRecord, store_code
from kdbench.run.adoption import Adoption
from kdbench.run.context import Context
from kdbench.run.listeners import TrialListener
from kdbench.run.teachers import Teachers
from kdbench.run.work import Part
from kdbench.seeding import derive
from kdbench.suite.plan import Trial, content_hash

CONCERNS_ALL = (Interrupted, ResultsError, DataError, TeacherMismatchError)
"""Errors that concern all cohorts."""


class Students:
    """Trains the claimed students of one cohort after another."""

    def __init__(self, context: Context, teachers: Teachers) -> None:
        self.context = context
        self.teachers = teachers
        self.adoption = Adoption(context)
        self._originals = Originals()
        self._part: Part

    def train(self, part: Part, add: Callable[[Part, Trial], bool]) -> None:
        """Train the trials of ``part``, and those of its cohort with stale results that can be claimed with ``add``."""
        self._part = part
        cohort = part.cohort
        try:
            teacher = self.teachers(cohort.teacher)
        except CONCERNS_ALL:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a model may come with a plugin
            # None of these trials can be trained without the teacher; those of other teachers can.
            self.context.warn(f"teacher {cohort.teacher.shown}: {in_words(error)}")
            self.fail(part, error)
            return
        stale = {trial.id for trial in cohort.trials if trial.id not in part.claims and self._stale(trial, teacher)}
        missing = [
            trial for trial in cohort.trials if trial.id in part.claims or (trial.id in stale and add(part, trial))
        ]
        recipe = cohort.trials[0].recipe
        feed = self.context.feed(recipe, cohort.seed)
        missing = [trial for trial in missing if not self._adopted(trial, teacher, feed)]
        watchful = False
        while missing:
            learners = [learner for trial in missing if (learner := self._learner(trial, teacher, feed)) is not None]
            if not learners:
                return
            names = {trial.id: trial for trial in missing}
            lockstep = Lockstep(
                learners,
                feed,
                teacher,
                TrialListener(names, self.context.notify, self.context.info),
                data=self.context.data,
                environment=self.context.environment(recipe),
                checkpoint_every=self.context.opened.suite.checkpoint_every,
                stop=self.context.stop.asked,
                overdue=self.context.stop.overdue,
                watchful=watchful,
                added=self.context.added,
                engine=self.context.opened.suite.engine,
            )
            lockstep.run()
            missing = [names[learner.id] for learner in lockstep.withdrawn]
            watchful = True
            if missing:
                self.context.warn(
                    f"a plugin replaced {', '.join(lockstep.replaced)} during an epoch; kdbench restored it; "
                    f"{len(missing)} trial(s) will be retrained from their last checkpoints to identify the plugin"
                )
            # Free their device memory before the next learners are built.
            del lockstep, learners

    def _stale(self, trial: Trial, teacher: FrozenTeacher) -> bool:
        """Whether a chosen trial's result was made with another teacher's weights, or other data."""
        result = self.context.folder.trial(trial.id).result
        if result is None or trial.id not in (self.context.info.chosen or ()):
            return False
        made_with = result.teacher.sha256 if result.teacher else None, result.data.fingerprint
        return made_with != (teacher.used.sha256, self.context.arrays.fingerprint)

    def _adopted(self, trial: Trial, teacher: FrozenTeacher, feed: Feed) -> bool:
        """Whether the result of an equal training serves the trial, which is then finished."""
        new_learner = partial(self._new_learner, trial, teacher, feed)
        return self.adoption(trial, self._folder(trial), feed, teacher, new_learner)

    def _learner(self, trial: Trial, teacher: FrozenTeacher, feed: Feed) -> Learner | None:
        """The trial's student and method, ready to train; None if that fails."""
        place = self._folder(trial)
        learner = self._new_learner(trial, teacher, feed)
        if learner is None:
            return None
        place.begin(TrialRecord.of(trial))
        store_code(place.path, self.context.resolver.code(trial))
        if place.checkpoint.exists() and not _resumed(learner):
            self.context.warn(
                f"{trial.id}: its checkpoint does not match or cannot be read; training starts from the beginning"
            )
            place.checkpoint.unlink(missing_ok=True)
            learner = self._new_learner(trial, teacher, feed)
            if learner is None:
                return None
        place.write_epochs(learner.progress.records)
        self.context.notify("kdbench_trial_started", trial=trial, run=self.context.info)
        return learner

    def _new_learner(self, trial: Trial, teacher: FrozenTeacher, feed: Feed) -> Learner | None:
        """The trial's student and method before their first step; None if a plugin fails."""
        try:
            with contained("its method or its network", self._originals):
                return self._make(trial, teacher, feed)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and self.context.stop.asked():
                raise
            self._could_not_begin(trial, error)
            return None

    def _make(self, trial: Trial, teacher: FrozenTeacher, feed: Feed) -> Learner:
        network = teachers.build_seeded(
            lambda: self.context.network(trial.student, trial.recipe), trial.seed, "student", trial.student
        )
        student = signature(network, trial.student, self.context.resolver.facts.image_shape)
        labels = self.context.arrays.train.labels
        # A copy, because training reads the original.
        data = DataSignature(self.context.resolver.facts.classes, len(labels), torch.tensor(labels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(trial.seed, "adapters", trial.method))
            method = self.context.resolver.method(trial)
            # Copies, because a method may write into the tensors.
            set_up(method, copy.deepcopy(student), copy.deepcopy(teacher.signature), data)
        return Learner(
            identifier=trial.id,
            network=network,
            student=student,
            teacher=teacher.signature,
            method=method,
            recipe=trial.recipe,
            seed=trial.seed,
            folder=self._folder(trial),
            device=self.context.device,
            steps_per_epoch=feed.steps_per_epoch,
            settings=trial.settings,
            made_with={
                "teacher": teacher.used.sha256,
                "data": self.context.arrays.fingerprint,
                "precision": Precision.choose(trial.recipe.precision, self.context.device).name,
            },
            stream=trial.training or content_hash(trial.identity),
            foreign=self.context.resolver.foreign_parts(trial),
            parts=self.context.resolver.parts(trial.recipe),
        )

    def fail(self, part: Part, error: BaseException) -> None:
        """Record that the trials of ``part`` cannot be trained."""
        self._part = part
        for trial in part.trials:
            self._could_not_begin(trial, error)

    def _folder(self, trial: Trial) -> TrialFolder:
        return self.context.folder.trial(trial.id, self._part.claims[trial.id].check)

    def _could_not_begin(self, trial: Trial, error: BaseException) -> None:
        record = failure(trial.id, error, "setup", 0)
        place = self._folder(trial)
        place.begin(TrialRecord.of(trial))
        store_code(place.path, self.context.resolver.code(trial))
        place.fail(record)
        self.context.notify("kdbench_trial_failed", trial=trial, error=record, run=self.context.info)


def _resumed(learner: Learner) -> bool:
    try:
        with contained("its method or its network"):
            return learner.resume()
    except (Exception, SystemExit):  # noqa: BLE001 - a checkpoint that does not fit may fail in any way
        return False
