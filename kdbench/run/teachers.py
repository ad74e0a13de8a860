"""The teachers of one invocation: each is loaded or trained once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from kdbench.engine import teacher as teachers
from kdbench.engine.device import Precision
from kdbench.engine.failure import failure
from kdbench.engine.frozen import FrozenTeacher
from kdbench.errors import TeacherMismatchError, TrialError
from kdbench.isolation import contained
from kdbench.models.base import TappedModel
from kdbench.results import TEACHERS, Failure, TeacherFolder, TeacherRecord
from kdbench.run.context import Context
from kdbench.run.listeners import TeacherListener
from kdbench.run.work import MOST_DEATHS, died
from kdbench.suite.plan import TeacherPlan


class Teachers:
    """Provides each teacher of the plan, and keeps it for the next cohort."""

    def __init__(self, context: Context, allow_mismatch: bool) -> None:
        self.context = context
        self.allow_mismatch = allow_mismatch
        self._ready: dict[str, FrozenTeacher] = {}
        """By key; of each name the last one, since those of other seeds would only take memory."""
        self._announced: set[str] = set()
        self._names: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self.known_failures: Mapping[str, Failure | None] = {}
        """Failures from before the invocation, by key: these teachers are tried again, once by all processes."""

    def __call__(self, plan: TeacherPlan) -> FrozenTeacher:
        """The teacher; it is trained first if it is missing.

        Raises :class:`~kdbench.claims.HeldError` if another process trains it.
        """
        if plan.key in self._failed:
            raise TrialError(self._failed[plan.key])
        if plan.key not in self._ready:
            for key in [key for key, one in self._names.items() if one == plan.name]:
                del self._ready[key], self._names[key]
            try:
                self._ready[plan.key] = self._make(plan)
                self._names[plan.key] = plan.name
            except TrialError as error:
                # It would fail in the same way for every other cohort.
                self._failed[plan.key] = str(error)
                raise
        return self._ready[plan.key]

    def _make(self, plan: TeacherPlan) -> FrozenTeacher:
        folder = self.context.folder.teacher(plan.key)
        shape = self.context.resolver.facts.image_shape
        foreign = self.context.resolver.is_foreign_model(plan.model)
        who = f"teacher {plan.shown}"

        def build() -> TappedModel:
            return self.context.network(plan.model, plan.recipe)

        def load(place: TeacherFolder) -> FrozenTeacher | None:
            device, fingerprint = self.context.device, self.context.arrays.fingerprint
            with contained(who):
                return teachers.load(plan, build, shape, place, device, fingerprint, foreign=foreign)

        trained = False
        teacher = load(folder) if folder.is_complete else None
        if teacher is None:
            with self._claimed(plan) as folder:
                # Another process may have trained it meanwhile.
                teacher = load(folder)
                if teacher is None:
                    if damage := folder.damage(thorough=True):
                        self.context.warn(f"{folder.path}: damaged: {damage}; the teacher will be retrained")
                    self._obtain(plan, build, folder, foreign)
                    trained = True
                    teacher = load(folder)
        if teacher is None:
            raise TrialError(f"{folder.path} cannot be read back; remove it and run again")
        self._compare(plan, teacher)
        if trained or plan.key not in self._announced:
            self._announced.add(plan.key)
            record, result = TeacherRecord.of(plan), folder.result
            self.context.notify("kdbench_teacher_finished", teacher=record, result=result, run=self.context.info)
        return teacher

    @contextmanager
    def _claimed(self, plan: TeacherPlan) -> Iterator[TeacherFolder]:
        """The teacher's folder, which no other process writes within the context."""
        folder = self.context.folder.teacher(plan.key)
        claim = self.context.claims.claim(TEACHERS, plan.key, len(folder.epochs))
        try:
            folder = self.context.folder.teacher(plan.key, claim.check)
            error = folder.error
            if error is not None and error != self.known_failures.get(plan.key) and not folder.is_complete:
                raise TrialError(f"teacher {plan.shown}: {error.reason}")
            try:
                if claim.entry.deaths >= MOST_DEATHS:
                    raise TrialError(f"teacher {plan.shown}: {died(claim.entry.deaths)}")
                yield folder
            except TrialError as failed:
                # For other processes, which would train it again.
                folder.fail(failure(plan.key, failed, "teacher", 0))
                raise
        finally:
            claim.release()

    def _obtain(
        self, plan: TeacherPlan, build: Callable[[], TappedModel], folder: TeacherFolder, foreign: bool
    ) -> None:
        recipe = plan.recipe or self.context.opened.suite.recipe
        feed = self.context.feed(recipe, plan.seed)
        self.context.notify("kdbench_teacher_started", teacher=TeacherRecord.of(plan), run=self.context.info)
        if plan.recipe is None:
            network = self.context.network(plan.model, weights=plan.weights)
            precision = Precision.choose(recipe.precision, self.context.device)
            data, environment = self.context.data, self.context.environment(recipe)
            teachers.measure_given(plan, network, feed, folder, precision, data, environment)
            return
        teachers.train(
            plan,
            self.context.resolver.parts(plan.recipe),
            build,
            self.context.resolver.facts.image_shape,
            feed,
            folder,
            self.context.device,
            TeacherListener(plan, self.context.notify, self.context.info),
            data=self.context.data,
            environment=self.context.environment(plan.recipe),
            checkpoint_every=self.context.opened.suite.checkpoint_every,
            stop=self.context.stop.asked,
            overdue=self.context.stop.overdue,
            engine=self.context.opened.suite.engine,
            foreign=foreign,
        )

    def _compare(self, plan: TeacherPlan, teacher: FrozenTeacher) -> None:
        """Abort before training students if the teacher's accuracy differs from the expected one."""
        message = plan.mismatch(teacher.used.top1)
        if not message:
            return
        if not self.allow_mismatch:
            raise TeacherMismatchError(f"{message}; correct teachers.{plan.name} or pass --allow-teacher-mismatch")
        self.context.warn(message)
