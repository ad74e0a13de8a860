"""The one place that joins plan, engine and observers. ``run_suite`` is the Python API."""

from __future__ import annotations

import datetime
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape

from kdbench import plugins as plugin_room
from kdbench.data.base import Arrays
from kdbench.data.feed import Feed, channel_statistics, open_feed
from kdbench.data.splits import limit
from kdbench.engine import teacher as teachers
from kdbench.engine.cohort import Interrupted, Lockstep, Teacher
from kdbench.engine.device import Precision, choose_device, device_name
from kdbench.engine.learner import Learner, failure, now
from kdbench.environment import describe_environment
from kdbench.errors import DataError, KdbenchError, ResultsError, TeacherMismatchError, TrialError, in_words
from kdbench.hookspecs import RunInfo
from kdbench.method import DataSignature, set_up
from kdbench.models.base import TappedModel, signature
from kdbench.observers.notify import Notifier
from kdbench.recipe import Recipe
from kdbench.report import made_from
from kdbench.resolve import Catalogue, Filters, Resolver, with_results
from kdbench.results import SuiteFolder, TrialFolder
from kdbench.seeding import derive
from kdbench.session import alone_with, default_observers, only_one_run, registered, stop_at_interrupt
from kdbench.suite import load
from kdbench.suite.plan import Cohort, Plan, TeacherPlan, Trial, content_hash, count
from kdbench.suite.schema import Suite

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """What stands in the results folder after a run."""

    plan: Plan
    folder: SuiteFolder
    report: Path
    filters: Filters
    interrupted: bool = False

    @property
    def failed(self) -> list[Trial]:
        """Trials whose last attempt failed."""
        return [trial for trial in self.plan.trials if trial.status == "failed"]

    @property
    def missing(self) -> list[Trial]:
        """Trials that were asked for and have no outcome."""
        asked = (trial for trial in self.plan.trials if self.filters.match(trial))
        return [trial for trial in asked if trial.status in {"failed", "pending"}]

    def to_frame(self) -> pd.DataFrame:
        """One row a trial of those asked for; accuracies in percent, times in seconds."""
        from kdbench.report import frame

        filters = self.filters
        return frame.read_trials(self.folder, frame.Filters(filters.methods, filters.pairs, filters.seeds))

    def __repr__(self) -> str:
        asked = [trial for trial in self.plan.trials if self.filters.match(trial)]
        states = ", ".join(f"{number} {state}" for state, number in count(asked).items())
        return f"<Results of {self.plan.suite.name}: {states}; report: {self.report / 'index.html'}>"


@dataclass(frozen=True)
class Opened:
    """A suite with everything that it names."""

    path: Path
    suite: Suite
    registry: plugin_room.Registry
    resolver: Resolver
    overrides: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()

    @cached_property
    def plan(self) -> Plan:
        """All trials of the suite."""
        return self.resolver.plan()


def open_suite(suite: str | Path, *, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()) -> Opened:
    """Read a suite file (or shipped suite), load its plugins, check every name and setting.

    Raises ``SuiteError`` with all problems found.
    """
    path = load.locate(suite)
    tables = load.read(path, overrides)
    registry = plugin_room.discover([*plugins, *load.plugin_files(path, tables)])
    checked = load.load(path, tables, Catalogue(registry))
    resolver = Resolver(checked, registry, path.parent)
    return Opened(path, checked, registry, resolver, tuple(overrides), tuple(map(str, plugins)))


def run_suite(
    suite: str | Path,
    *,
    methods: Sequence[str] = (),
    pairs: Sequence[str] = (),
    seeds: Sequence[int] = (),
    device: str = "auto",
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    output: str | Path = "runs",
    report_dir: str | Path = "reports",
    tracking_uri: str | None = None,
    fresh: bool = False,
    allow_teacher_mismatch: bool = False,
    observers: Sequence[object] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Results:
    """Train what is missing of a suite, and write its report.

    ``suite`` is a path or the name of a suite that ships with kdbench. ``methods`` are globs on names or
    labels, ``pairs`` are ``teacher:student``, ``overrides`` are ``key.path=value``; ``tracking_uri`` is
    MLflow's store, ``"none"`` for no tracking. ``observers`` replaces the progress display and MLflow.
    Raises ``KdbenchError`` for what cannot be run; trials that fail are in ``Results.failed``.
    """
    console = Console(stderr=True, emoji=False)
    warn = warn or partial(_warn, console)
    opened = open_suite(suite, overrides=overrides, plugins=plugins)
    filters = Filters(methods, pairs, seeds)
    filters.check(opened.suite)
    chosen_device = choose_device(device)
    folder = SuiteFolder(Path(output), opened.suite.name)
    report = Path(report_dir) / opened.suite.name
    for broken in opened.registry.broken:
        warn(f"plugin {broken}")
    if chosen_device.type == "cuda":
        # Events and streams belong to the current device.
        torch.cuda.set_device(chosen_device)
    with only_one_run(folder), stop_at_interrupt(warn) as stopping:
        folder.check_protocol()
        environment = {**describe_environment(), "device": device_name(chosen_device)}
        info = RunInfo(
            invocation=f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
            output=folder.path,
            report=report,
            tracking_uri=tracking_uri,
            device=str(chosen_device),
            environment=environment,
            chosen=frozenset(trial.id for trial in opened.plan.trials if filters.match(trial)),
        )
        standing = default_observers(tracking_uri, console, warn) if observers is None else observers
        with registered(standing, opened.registry, warn):
            notify = Notifier(opened.registry.manager, warn)
            run = _Run(opened, folder, info, chosen_device, notify, warn, stopping, allow_teacher_mismatch)
            return run(filters, fresh=fresh)


class _Run:
    """One invocation: trains cohort after cohort, tells observers, writes the report."""

    def __init__(
        self,
        opened: Opened,
        folder: SuiteFolder,
        info: RunInfo,
        device: torch.device,
        notify: Notifier,
        warn: Callable[[str], None],
        stopping: threading.Event,
        allow_teacher_mismatch: bool,
    ) -> None:
        self.opened = opened
        self.resolver = opened.resolver
        self.folder = folder
        self.info = info
        self.device = device
        self.notify = notify
        self.warn = warn
        self.stopping = stopping
        self.allow_teacher_mismatch = allow_teacher_mismatch
        self.teachers: dict[str, Teacher] = {}

    @cached_property
    def arrays(self) -> Arrays:
        """The data, loaded when first needed: a finished suite needs none."""
        return limit(self.resolver.dataset.load(), **self.resolver.limits)

    def __call__(self, filters: Filters, *, fresh: bool) -> Results:
        chosen = self.info.chosen or frozenset()
        if fresh:
            for identifier in chosen:
                self.folder.trial(identifier).clear()
        plan = with_results(self.opened.plan, self.folder)
        self._remember(plan)
        self.notify("kdbench_suite_started", plan=plan, run=self.info)
        for trial in plan.trials:
            if trial.status == "skipped" and trial.id in chosen:
                self.notify("kdbench_trial_skipped", trial=trial, reason=trial.reason, run=self.info)
        try:
            self._train_all(plan, chosen, {"pending", "failed"})
            # A teacher that had to be made anew may have left results of earlier cohorts behind.
            self._train_all(with_results(self.opened.plan, self.folder), chosen, {"pending"})
        except Interrupted:
            return self._end(filters, interrupted=True)
        except Exception:
            self._end(filters, interrupted=True)
            raise
        return self._end(filters, interrupted=False)

    def _train_all(self, plan: Plan, chosen: frozenset[str], states: set[str]) -> None:
        for cohort in plan.cohorts:
            trials = [trial for trial in cohort.trials if trial.id in chosen and trial.status in states]
            if trials and self.stopping.is_set():
                raise Interrupted("interrupted")
            if trials:
                self._train(cohort, trials)

    def _end(self, filters: Filters, *, interrupted: bool) -> Results:
        plan = with_results(self.opened.plan, self.folder)
        self._remember(plan)
        write_report(self.folder, self.info.report, self.warn)
        self.notify("kdbench_suite_finished", plan=plan, run=self.info, interrupted=interrupted)
        return Results(plan, self.folder, self.info.report, filters, interrupted)

    def _remember(self, plan: Plan) -> None:
        self.folder.write_plan(
            {
                "suite": plan.suite.model_dump(mode="json"),
                "path": str(self.opened.path),
                "overrides": list(self.opened.overrides),
                "plugins": list(self.opened.plugins),
                "trials": [trial.describe() for trial in plan.trials],
                "teachers": [{"name": t.name, "key": t.key, "model": t.model} for t in plan.teachers],
                "environment": dict(self.info.environment),
                "updated": now(),
            }
        )

    def _network(self, name: str, recipe: Recipe | None = None, weights: str | None = None) -> TappedModel:
        """A network that knows how this suite's images are normalised."""
        network = self.resolver.network(name, recipe, weights)
        network.accept_normalisation(*channel_statistics(self.resolver.facts, self.arrays))
        return network

    # ---- a cohort

    def _train(self, cohort: Cohort, trials: Sequence[Trial]) -> None:
        try:
            teacher = self._teacher(cohort.teacher)
        except (Interrupted, ResultsError, DataError, TeacherMismatchError):
            raise  # these concern all
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a model may come with a plugin
            # Without its teacher none of these can be trained; other teachers' trials can.
            self.warn(f"teacher {cohort.teacher.name}: {in_words(error)}")
            for trial in trials:
                self._could_not_begin(trial, error)
            return
        missing = [trial for trial in cohort.trials if trial in trials or self._stale(trial, teacher)]
        recipe = cohort.trials[0].recipe
        feed = self._feed(recipe, cohort.seed)
        learners = []
        for trial in missing:
            learner = self._learner(trial, teacher, feed)
            if learner is not None:
                learners.append(learner)
        if not learners:
            return
        names = {trial.id: trial for trial in missing}
        Lockstep(
            learners,
            feed,
            teacher,
            _TrialListener(names, self.notify, self.info),
            facts=self._facts(recipe),
            checkpoint_every=self.opened.suite.checkpoint_every,
            stop=self.stopping.is_set,
        ).run()

    def _stale(self, trial: Trial, teacher: Teacher) -> bool:
        """Whether a chosen trial's result was made with another teacher's weights, or other data."""
        result = self.folder.trial(trial.id).result
        if result is None or trial.id not in (self.info.chosen or ()):
            return False
        made_with = (result.get("teacher") or {}).get("sha256"), (result.get("data") or {}).get("fingerprint")
        return made_with != (teacher.facts["sha256"], self.arrays.fingerprint)

    def _feed(self, recipe: Recipe, seed: int) -> Feed:
        return open_feed(
            self.arrays,
            self.resolver.facts,
            augmentation=recipe.augmentation,
            batch_size=recipe.batch_size,
            seed=seed,
            device=self.device,
        )

    def _facts(self, recipe: Recipe) -> dict[str, Any]:
        precision = Precision.choose(recipe.precision, self.device).name
        data, facts = self.arrays, self.resolver.facts
        mean, std = channel_statistics(facts, data)
        return {
            "data": {
                "name": self.opened.suite.data.name,
                "fingerprint": data.fingerprint,
                "corrupt": data.corrupt,
                "classes": facts.classes,
                "image_shape": list(facts.image_shape),
                "mean": list(mean),
                "std": list(std),
                "n_train": len(data.train.labels),
                "n_test": len(data.test.labels),
            },
            "environment": {**self.info.environment, "precision": precision},
        }

    def _learner(self, trial: Trial, teacher: Teacher, feed: Feed) -> Learner | None:
        """The trial's student and method, ready to go on; None where that fails."""
        place = self.folder.trial(trial.id)
        try:
            learner = self._new_learner(trial, teacher, feed)
            # A damaged or stale result is not taken for one.
            (place.path / "result.json").unlink(missing_ok=True)
            place.begin(trial.to_json())
            if place.checkpoint.exists() and not _resumed(learner):
                self.warn(f"{trial.id}: its checkpoint does not fit or cannot be read; it begins anew")
                place.checkpoint.unlink()
                learner = self._new_learner(trial, teacher, feed)
            place.write_epochs(learner.records)
        except ResultsError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's own failure is its trial's
            self._could_not_begin(trial, error)
            return None
        self.notify("kdbench_trial_started", trial=trial, run=self.info)
        return learner

    def _new_learner(self, trial: Trial, teacher: Teacher, feed: Feed) -> Learner:
        network = teachers.build_seeded(
            lambda: self._network(trial.student, trial.recipe), trial.seed, "student", trial.student
        )
        student = signature(network, trial.student, self.resolver.facts.image_shape)
        labels = self.arrays.train.labels
        # A copy: the training itself reads the original.
        data = DataSignature(self.resolver.facts.classes, len(labels), torch.tensor(labels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(trial.seed, "adapters", trial.method))
            method = self.resolver.method(trial)
            set_up(method, student, teacher.signature, data)
        return Learner(
            identifier=trial.id,
            network=network,
            student=student,
            teacher=teacher.signature,
            method=method,
            recipe=trial.recipe,
            seed=trial.seed,
            folder=self.folder.trial(trial.id),
            device=self.device,
            steps_per_epoch=feed.steps_per_epoch,
            settings=trial.settings,
            made_with={
                "teacher": teacher.facts["sha256"],
                "data": self.arrays.fingerprint,
                "precision": Precision.choose(trial.recipe.precision, self.device).name,
            },
            stream=content_hash(trial.identity),
        )

    def _could_not_begin(self, trial: Trial, error: BaseException) -> None:
        record = failure(trial.id, error, "setup", 0)
        place = self.folder.trial(trial.id)
        place.begin(trial.to_json())
        place.fail(record)
        self.notify("kdbench_trial_failed", trial=trial, error=record, run=self.info)

    # ---- teachers

    def _teacher(self, plan: TeacherPlan) -> Teacher:
        if plan.key not in self.teachers:
            self.teachers[plan.key] = self._make_teacher(plan)
        return self.teachers[plan.key]

    def _make_teacher(self, plan: TeacherPlan) -> Teacher:
        folder = self.folder.teacher(plan.key)
        shape = self.resolver.facts.image_shape

        def build() -> TappedModel:
            return self._network(plan.model, plan.recipe)

        with alone_with(folder, self.stopping, self.warn):
            fingerprint = self.arrays.fingerprint
            teacher = teachers.load(plan, build, shape, folder, self.device, fingerprint)
            if teacher is None:
                self._obtain(plan, build, folder)
                teacher = teachers.load(plan, build, shape, folder, self.device, fingerprint)
        if teacher is None:
            raise TrialError(f"{folder.path} cannot be read back; remove it and run again")
        self._compare(plan, teacher)
        described = teachers.describe(plan)
        self.notify("kdbench_teacher_finished", teacher=described, result=dict(folder.result or {}), run=self.info)
        return teacher

    def _obtain(self, plan: TeacherPlan, build: Callable[[], TappedModel], folder: TrialFolder) -> None:
        recipe = plan.recipe or self.opened.suite.recipe
        feed = self._feed(recipe, plan.seed)
        self.notify("kdbench_teacher_started", teacher=teachers.describe(plan), run=self.info)
        if plan.recipe is None:
            network = self._network(plan.model, weights=plan.weights)
            precision = Precision.choose(recipe.precision, self.device)
            teachers.measure_given(plan, network, feed, folder, precision, self._facts(recipe))
            return
        teachers.train(
            plan,
            plan.recipe,
            build,
            self.resolver.facts.image_shape,
            feed,
            folder,
            self.device,
            _TeacherListener(plan, self.notify, self.info),
            facts=self._facts(plan.recipe),
            checkpoint_every=self.opened.suite.checkpoint_every,
            stop=self.stopping.is_set,
        )

    def _compare(self, plan: TeacherPlan, teacher: Teacher) -> None:
        """Stop before spending on students of a teacher that is not what the suite expects."""
        expected = plan.expected_top1
        if expected is None or abs(teacher.facts["top1"] - expected) <= plan.tolerance:
            return
        message = (
            f"teacher {plan.name}: reaches {teacher.facts['top1']:.2f} % on the test set, the suite expects "
            f"{expected:.2f} ± {plan.tolerance:.2f} %"
        )
        if not self.allow_teacher_mismatch:
            raise TeacherMismatchError(f"{message}; correct teachers.{plan.name} or pass --allow-teacher-mismatch")
        self.warn(message)


def _resumed(learner: Learner) -> bool:
    try:
        return learner.resume()
    except Exception:  # noqa: BLE001 - a checkpoint that does not fit may fail in any way
        return False


class _TrialListener:
    """Passes what happens to learners on to observers, as trials."""

    def __init__(self, trials: Mapping[str, Trial], notify: Notifier, info: RunInfo) -> None:
        self.trials, self.notify, self.info = trials, notify, info

    def epoch(self, identifier: str, record: Mapping[str, Any]) -> None:
        self.notify("kdbench_epoch_finished", trial=self.trials[identifier], record=record, run=self.info)

    def finished(self, identifier: str, result: Mapping[str, Any]) -> None:
        trial = self.trials[identifier].with_status(str(result["status"]))
        self.notify("kdbench_trial_finished", trial=trial, result=result, run=self.info)

    def failed(self, identifier: str, error: Mapping[str, Any]) -> None:
        trial = self.trials[identifier].with_status("failed", str(error["why"]))
        self.notify("kdbench_trial_failed", trial=trial, error=error, run=self.info)


class _TeacherListener:
    """The same for a teacher, whose failure and end the run itself tells."""

    def __init__(self, plan: TeacherPlan, notify: Notifier, info: RunInfo) -> None:
        self.described, self.notify, self.info = teachers.describe(plan), notify, info

    def epoch(self, identifier: str, record: Mapping[str, Any]) -> None:
        self.notify("kdbench_teacher_epoch_finished", teacher=self.described, record=record, run=self.info)

    def finished(self, identifier: str, result: Mapping[str, Any]) -> None:
        """Told by ``kdbench_teacher_finished``, once the weights are read back."""

    def failed(self, identifier: str, error: Mapping[str, Any]) -> None:
        """Told by the failure of the trials that wait for this teacher."""


def write_report(folder: SuiteFolder, report: Path, warn: Callable[[str], None]) -> None:
    """Render the report of all that stands, unless that one is there; a failure to do so loses no result."""
    try:
        if made_from.is_current(report, made_from.digest(folder)):
            return
        from kdbench.report.render import render

        render(folder, report)
    except Exception as error:  # noqa: BLE001 - hours of training must not end in a page's fault
        what = str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"
        warn(f"the report was not written: {what}; the results are safe, and kdbench report writes it again")


def _warn(console: Console, message: str) -> None:
    # On the progress display's own console, which then makes room for it.
    console.print(f"[yellow]kdbench:[/] {escape(message)}", highlight=False, soft_wrap=True)
