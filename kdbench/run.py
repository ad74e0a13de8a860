"""The one place that joins plan, engine and observers. ``run_suite`` is the Python API."""

from __future__ import annotations

import datetime
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from kdbench import plugins as plugin_room
from kdbench.data.base import Arrays
from kdbench.data.feed import Feed, channel_statistics, open_feed
from kdbench.data.splits import limit
from kdbench.engine import teacher as teachers
from kdbench.engine.cohort import Interrupted, Lockstep, Teacher
from kdbench.engine.device import Precision, choose_device, device_name
from kdbench.engine.learner import Learner, now
from kdbench.environment import describe_environment
from kdbench.errors import KdbenchError, ResultsError, TrialError
from kdbench.hookspecs import RunInfo
from kdbench.method import DataSignature
from kdbench.models.base import TappedModel, signature
from kdbench.observers.notify import Notifier
from kdbench.recipe import Recipe
from kdbench.resolve import Catalogue, Filters, Resolver, with_results
from kdbench.results import SuiteFolder, TrialFolder
from kdbench.seeding import derive
from kdbench.suite import load
from kdbench.suite.plan import Cohort, Plan, TeacherPlan, Trial
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

    def to_frame(self) -> pd.DataFrame:
        """One row a trial; accuracies in percent, times in seconds."""
        from kdbench.report.frame import read_trials

        return read_trials(self.folder)


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
    console = Console(stderr=True)
    warn = warn or partial(_warn, console)
    opened = open_suite(suite, overrides=overrides, plugins=plugins)
    filters = Filters(methods, pairs, seeds)
    filters.check(opened.suite)
    chosen_device = choose_device(device)
    folder = SuiteFolder(Path(output), opened.suite.name)
    report = Path(report_dir) / opened.suite.name
    for broken in opened.registry.broken:
        warn(f"plugin {broken}")
    with _only_one_run(folder), _stop_at_interrupt(warn) as stopping:
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
        with _registered(standing, opened.registry):
            notify = Notifier(opened.registry.manager, warn)
            run = _Run(opened, folder, info, chosen_device, notify, warn, stopping, allow_teacher_mismatch)
            return run(filters, fresh=fresh)


@contextmanager
def _registered(observers: Sequence[object], registry: plugin_room.Registry) -> Iterator[None]:
    """Observers listen for as long as this lasts, and are closed however it ends."""
    for observer in observers:
        registry.manager.register(observer)
    try:
        yield
    finally:
        for observer in observers:
            close = getattr(observer, "close", None)
            if close is not None:
                close()


def default_observers(tracking_uri: str | None, console: Console, warn: Callable[[str], None]) -> list[object]:
    """The progress display on ``console``, and MLflow unless it is told ``none``."""
    from kdbench.observers.mlflow import MlflowObserver
    from kdbench.observers.progress import ProgressObserver

    observers: list[object] = [ProgressObserver(console)]
    if tracking_uri != "none":
        observers.append(MlflowObserver(tracking_uri, warn))
    return observers


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
        interrupted = False
        try:
            for cohort in plan.cohorts:
                self._train(cohort, [trial for trial in cohort.trials if trial.id in chosen])
        except Interrupted:
            interrupted = True
        plan = with_results(self.opened.plan, self.folder)
        self._remember(plan)
        write_report(self.folder, self.info.report, filters, self.warn)
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
        missing = [trial for trial in trials if trial.status not in {"done", "diverged"}]
        if not missing:
            return
        try:
            teacher = self._teacher(cohort.teacher)
        except TrialError as error:
            # Without its teacher none of these can be trained; other teachers' trials can.
            self.warn(str(error))
            for trial in missing:
                self._could_not_begin(trial, error)
            return
        # Results under another teacher's weights are stale: they are made anew, never mixed with these.
        sha256 = teacher.facts["sha256"]
        missing = [t for t in trials if not self._stands(t, sha256)]
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

    def _stands(self, trial: Trial, teacher_sha256: str) -> bool:
        result = self.folder.trial(trial.id).result
        if result is None:
            return False
        if result["teacher"]["sha256"] == teacher_sha256:
            return True
        self.folder.trial(trial.id).clear()
        return False

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
            network = teachers.build_seeded(
                lambda: self._network(trial.student, trial.recipe), trial.seed, "student", trial.student
            )
            student = signature(network, trial.student, self.resolver.facts.image_shape)
            data = DataSignature(
                self.resolver.facts.classes,
                len(self.arrays.train.labels),
                torch.from_numpy(self.arrays.train.labels),
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(trial.seed, "adapters", trial.method))
                method = self.resolver.method(trial)
                method.setup(student, teacher.signature, data)
            learner = Learner(
                identifier=trial.id,
                network=network,
                student=student,
                teacher=teacher.signature,
                method=method,
                recipe=trial.recipe,
                seed=trial.seed,
                folder=place,
                device=self.device,
                steps_per_epoch=feed.steps_per_epoch,
            )
        except Exception as error:  # noqa: BLE001 - a plugin's own failure is its trial's
            self._could_not_begin(trial, error)
            return None
        # A damaged result is not taken for one, nor are its weights.
        (place.path / "result.json").unlink(missing_ok=True)
        place.begin(trial.to_json())
        learner.resume()
        place.write_epochs(learner.records)
        self.notify("kdbench_trial_started", trial=trial, run=self.info)
        return learner

    def _could_not_begin(self, trial: Trial, error: BaseException) -> None:
        record = {
            "id": trial.id,
            "status": "failed",
            "stage": "setup",
            "epoch": 0,
            "type": type(error).__name__,
            "message": str(error) or type(error).__name__,
            "traceback": _traceback(error),
            "when": now(),
        }
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

        teacher = teachers.load(plan, build, shape, folder, self.device)
        if teacher is None:
            self._obtain(plan, build, folder)
            teacher = teachers.load(plan, build, shape, folder, self.device)
        if teacher is None:
            raise TrialError(f"teacher {plan.name}: {folder.path} cannot be read back; remove it and run again")
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
            raise KdbenchError(f"{message}; correct teachers.{plan.name} or pass --allow-teacher-mismatch")
        self.warn(message)


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
        trial = self.trials[identifier].with_status("failed", str(error["message"]))
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


def write_report(folder: SuiteFolder, report: Path, filters: Filters, warn: Callable[[str], None]) -> None:
    """Render the report; a failure to do so loses no result."""
    from kdbench.report.render import render

    try:
        render(folder, report, methods=filters.methods, pairs=filters.pairs, seeds=filters.seeds)
    except Exception as error:  # noqa: BLE001 - hours of training must not end in a page's fault
        what = str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"
        warn(f"the report was not written: {what}; the results are safe, and kdbench report writes it again")


@contextmanager
def _only_one_run(folder: SuiteFolder) -> Iterator[None]:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.path / ".lock", timeout=0)
        with lock:
            yield
    except Timeout:
        raise ResultsError(f"{folder.path}: another kdbench run is working here; wait for it or stop it") from None
    except OSError as error:
        raise ResultsError(f"{folder.path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _stop_at_interrupt(warn: Callable[[str], None]) -> Iterator[threading.Event]:
    """The first Ctrl-C asks the engine to stop at the epoch's end, the second one stops at once."""
    stopping = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        warn("stopping after this epoch; press Ctrl-C again to leave at once (back to the last checkpoint)")

    if threading.current_thread() is not threading.main_thread():
        yield stopping  # signals reach the main thread alone
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, previous)


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def _warn(console: Console, message: str) -> None:
    # On the progress display's own console, which then makes room for it.
    console.print(f"[yellow]kdbench:[/] {escape(message)}", highlight=False, soft_wrap=True)
