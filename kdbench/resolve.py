"""From a suite to its plan: names become classes, settings are checked, shapes are tried on the meta device."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from kdbench import additions
from kdbench.data.base import Arrays, DataFacts, Dataset
from kdbench.data.loaded import check_loaded
from kdbench.data.splits import limit_facts
from kdbench.discovery import SUPPLIED, Offer, Registry
from kdbench.discovery import settings as settings_of
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.errors import (
    DataError,
    Incompatible,
    KdbenchError,
    ModelError,
    PluginError,
    SuiteError,
    in_words,
    text_of,
)
from kdbench.hookspecs import Spec
from kdbench.isolation import Originals, contained, restored
from kdbench.method import DataSignature, Method, Signature, members_made_by, set_up
from kdbench.models.base import TappedModel, contract_problems, from_offer
from kdbench.models.shapes import on_meta, planned_signature
from kdbench.models.weights import load_weights
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.remembered import Remembered
from kdbench.results import SuiteFolder
from kdbench.status import Status
from kdbench.suite.load import pair_recipe
from kdbench.suite.plan import Origin, Plan, TeacherPlan, Trial, content_hash
from kdbench.suite.schema import Suite
from kdbench.suite.tables import key_of
from kdbench.words import plural, shown

_WEIGHTS = frozenset({".pth", ".pt", ".safetensors", ".tar", ".bin"})
"""The endings of files of weights."""


class RegistryCatalogue:
    """Answers :mod:`kdbench.suite.load`'s questions from the registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def method_problems(self, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of a method's name (key '') or settings."""
        return _problems(lambda: self._registry.method(name), settings)

    def model_problems(self, name: str) -> list[tuple[str, str]]:
        """Problems of a model's name."""
        try:
            self._registry.model(name)
        except PluginError as error:
            return [("", str(error))]
        return []

    def data_problems(self, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of a data set's name or settings."""
        return _problems(lambda: self._registry.dataset(name), settings)

    def part_problems(self, spec: type[Spec], name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of the name or settings of an optimiser, schedule or augmentation."""
        return _problems(lambda: self._registry.find(spec, name), settings, SUPPLIED.get(spec, ()))

    def addition_problems(self, key: str, name: str) -> list[str]:
        """Problems of an entry of ``metrics``, ``sections`` or ``figures``."""
        return additions.problems(self._registry, key, name)


def _problems(
    find: Callable[[], Offer[Any]], settings: Mapping[str, Any], supplied: Iterable[str] = ()
) -> list[tuple[str, str]]:
    try:
        offer = find()
        return settings_of.resolve(offer.load(), {**offer.spec.presets, **settings}, frozenset(supplied))[1]
    except PluginError as error:
        return [("", str(error))]


@dataclass
class Resolver:
    """Builds what a suite names. One for a run: it remembers facts and signatures."""

    suite: Suite
    registry: Registry
    folder: Path = field(default_factory=Path)
    """The suite file's folder, to which paths of weights are relative."""
    _signatures: dict[str, Signature] = field(default_factory=dict)

    @cached_property
    def _originals(self) -> Originals:
        return Originals()

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, not yet loaded."""
        offer = self.registry.dataset(self.suite.data.name)
        return cast(Dataset, offer.load()(**self._data_settings))

    @cached_property
    def _data_settings(self) -> dict[str, Any]:
        offer = self.registry.dataset(self.suite.data.name)
        return settings_of.resolve(offer.load(), {**offer.spec.presets, **self.suite.data.settings})[0]

    @cached_property
    def facts(self) -> DataFacts:
        """Sizes of the data that is used, without reading an image."""
        return limit_facts(self._whole_facts, **self.limits)

    @cached_property
    def _whole_facts(self) -> DataFacts:
        """The facts of the whole data set."""
        with self._blamed("facts"):
            return self.dataset.facts()

    def load(self) -> Arrays:
        """The whole data set. Raises ``DataError`` where it is not what its facts announce."""
        with self._blamed("load"):
            arrays = self.dataset.load()
        return check_loaded(arrays, self._whole_facts, self.suite.data.name)

    @contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        """What a data set raises is an error of the data, as is global state that it leaves changed."""
        name = f"data set '{self.suite.data.name}'"
        try:
            # As things are now: a run has installed its signal handlers since the suite was planned.
            with contained(f"{name}: {what}()", Originals()):
                yield
        except PluginError as error:
            raise DataError(text_of(error)) from error
        except KdbenchError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"{name}: {what}() failed: {in_words(error)}") from error

    @property
    def limits(self) -> dict[str, Any]:
        """How much of the data set is used."""
        data = self.suite.data
        return {"train_limit": data.train_limit, "test_limit": data.test_limit, "validation": data.validation or None}

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """What decides the images; no path where the data set identifies its content."""
        content = self._whole_facts.content
        left_out = {*self.registry.dataset(self.suite.data.name).spec.reading, *(["root"] if content else [])}
        settings = {k: v for k, v in self._data_settings.items() if k not in left_out}
        source = _foreign_source(self.registry.dataset(self.suite.data.name))
        return {"name": self.suite.data.name, **settings, **self.limits, "source": source, "content": content}

    def network(self, name: str, recipe: Recipe | None = None, weights: str | None = None) -> TappedModel:
        """A network by name, freshly initialised or with the given weights."""
        offer = self.registry.model(name)
        extra: dict[str, Any] = {}
        known = settings_of.read_by_import(offer.load()).settings
        if recipe is not None and recipe.drop_path:
            if "drop_path" not in known:
                raise ModelError(f"recipe.drop_path: {name} has no stochastic depth; set it to 0 for its pair")
            extra["drop_path"] = recipe.drop_path
        # Adapters of model libraries fetch weights by name; all other networks take files alone.
        by_itself = weights is not None and "weights" in known
        if by_itself:
            extra["weights"] = weights
        network = from_offer(offer, classes=self.facts.classes, image_shape=self.facts.image_shape, **extra)
        if problems := contract_problems(network):
            raise ModelError(f"model '{name}' of {offer.provider}: {'; '.join(problems)} (docs/writing-a-model.md)")
        if weights is not None and not by_itself:
            load_weights(network, weights)
        return network

    def signature(self, name: str) -> Signature:
        """A network's signature, with the shapes of its taps."""
        if name not in self._signatures:
            with restored(self._originals):
                found = planned_signature(lambda: self.network(name), name, self.facts.image_shape)
            if found.classes != self.facts.classes:
                raise ModelError(f"model '{name}': gives {found.classes} logits for {self.facts.classes} classes")
            self._signatures[name] = found
        return self._signatures[name]

    def _fetches_weights(self, name: str) -> bool:
        """Whether a network takes weights by name; all others take files alone."""
        return "weights" in settings_of.read_by_import(self.registry.model(name).load()).settings

    def method(self, trial: Trial) -> Method:
        """A trial's method, not yet set up."""
        return make_method(self.registry, trial.method, trial.settings)

    def is_foreign_model(self, name: str) -> bool:
        """Whether a third party provides the network."""
        return _is_foreign(self.registry.model(name))

    def parts(self, recipe: Recipe) -> Parts:
        """A recipe's optimiser, schedule and augmentations."""
        return Parts.of(recipe, self.registry)

    def lengths(self, recipe: Recipe) -> list[dict[str, int]]:
        """The settings of a recipe's augmentations that are lengths in pixels."""
        return [{key: part.settings[key] for key in part.spec.lengths} for part in self.parts(recipe).augmentation]

    def recipe(self, override: Mapping[str, Any]) -> Recipe:
        """The suite's recipe with a pair's or teacher's differences, in the form that identifies a trial.

        Raises ``SuiteError`` for a third party's part that fails when it is tried.
        """
        parts = self.parts(pair_recipe(self.suite, override))
        if problems := [f"recipe.{key}: {what}" for key, what in parts.problems(self.facts.image_shape)]:
            raise SuiteError(problems)
        return parts.canonical

    def foreign_parts(self, trial: Trial) -> set[str]:
        """Which parts of a trial third parties provide: ``network``, ``method`` (or one that it combines), and the
        recipe's ``optimizer`` and ``schedule``.
        """
        methods = [
            self.registry.method(trial.method),
            *_members(self.registry, self.registry.method(trial.method), trial.settings),
        ]
        foreign = {
            "network": self.is_foreign_model(trial.student),
            "method": any(_is_foreign(offer) for offer in methods),
        }
        of_recipe = {"optimizer", "schedule"} & self.parts(trial.recipe).foreign.keys()
        return {part for part, is_foreign in foreign.items() if is_foreign} | of_recipe

    def code(self, trial: Trial) -> dict[str, bytes]:
        """The source files that identify a trial's parts, by ``part/name``; nothing of what a version identifies."""
        method = self.registry.method(trial.method)
        parts = [("method", method)]
        parts += [
            (f"method-{number}", offer)
            for number, offer in enumerate(_members(self.registry, method, trial.settings), 1)
        ]
        others: dict[str, Offer[Any]] = {
            "student": self.registry.model(trial.student),
            "teacher": self.registry.model(trial.teacher.model),
            "data": self.registry.dataset(self.suite.data.name),
        }
        others |= self.parts(trial.recipe).foreign
        parts += [(part, offer) for part, offer in others.items() if _foreign_source(offer)]
        return {
            f"{part}/{name}": content
            for part, offer in parts
            if offer.source is not None
            for name, content in offer.source.files.items()
        }

    def teacher(self, name: str) -> TeacherPlan:
        """How a teacher comes about."""
        table = self.suite.teacher(name)
        weights, digest = table.weights, None
        if weights is not None:
            path = self.folder / weights
            if os.path.isfile(path):
                weights, digest = str(path), hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.suffix in _WEIGHTS or not self._fetches_weights(table.model):
                where = key_of(("teachers", name, "weights"))
                raise SuiteError([f"{where}: {shown(str(path))[1:-1]}: no such file"])
        recipe = None if weights else self.recipe(table.recipe)
        return TeacherPlan(
            name=name,
            model=table.model,
            data=self.data_identity,
            recipe=recipe,
            weights=weights,
            weights_sha256=digest,
            seed=table.seed,
            model_source=_foreign_source(self.registry.model(table.model)),
            part_sources=self.parts(recipe).sources if recipe else {},
            expected_top1=table.expected_top1,
            tolerance=table.tolerance,
        )

    def plan(self) -> Plan:
        """All trials, with those skipped whose method cannot read their pair."""
        trials: list[Trial] = []
        remembered = Remembered()
        teachers = {name: self.teacher(name) for name in {pair.teacher for pair in self.suite.pairs}}
        for pair in self.suite.pairs:
            teacher = teachers[pair.teacher]
            recipe = self.recipe(pair.recipe)
            part_sources = self.parts(recipe).sources
            for method in self.suite.methods:
                offer = self.registry.method(method.name)
                given = {**offer.spec.presets, **method.settings, **pair.methods.get(method.shown, {})}
                settings, problems = settings_of.resolve(offer.load(), given)
                if problems:
                    raise SuiteError([f"methods.{method.shown}.{key}: {what}" for key, what in problems])
                fingerprint = method_fingerprint(self.registry, offer, settings)
                origin = Origin(offer.provider.distribution, offer.provider.version, fingerprint)
                first = Trial(
                    suite=self.suite.name,
                    data=self.data_identity,
                    teacher=teacher,
                    student=pair.student,
                    method=method.name,
                    label=method.shown,
                    seed=self.suite.seeds[0],
                    settings=settings,
                    recipe=recipe,
                    origin=origin,
                    student_source=_foreign_source(self.registry.model(pair.student)),
                    part_sources=part_sources,
                )
                reason = remembered(self._question(first), partial(self._incompatibility, first))
                for seed in self.suite.seeds:
                    trial = replace(first, seed=seed)
                    trials.append(trial.with_status(Status.SKIPPED, reason) if reason else trial)
        remembered.save()
        if repeated := list(_repetitions(trials)):
            raise SuiteError(repeated)
        return Plan(self.suite, tuple(trials))

    def _question(self, trial: Trial) -> dict[str, Any]:
        """All that decides whether the method can read the pair."""
        sides = {"student": (trial.student, trial.student_source)}
        sides["teacher"] = (trial.teacher.model, trial.teacher.model_source)
        networks = {
            side: [name, source, dict(self.registry.model(name).spec.presets)] for side, (name, source) in sides.items()
        }
        facts = [self.facts.classes, self.facts.image_shape, self.facts.n_train]
        method = [trial.method, dict(trial.settings), trial.origin.fingerprint]
        return {**networks, "data": facts, "method": method}

    def _incompatibility(self, trial: Trial) -> str:
        """Why the method cannot read the pair, tried on the meta device; empty if it can."""
        # What a plugin leaves changed here is found again, and put down to the trial, when it is trained.
        try:
            with restored(self._originals), on_meta():
                method = self.method(trial)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            what = f"{trial.method} cannot be made with these settings: {text_of(error) or type(error).__name__}"
            raise SuiteError([f"methods.{trial.label}: {what}"]) from error
        try:
            student, teacher = self.signature(trial.student), self.signature(trial.teacher.model)
        except (KeyboardInterrupt, ModelError):
            raise
        except BaseException:  # noqa: BLE001 - its trials will fail
            return ""
        try:
            with restored(self._originals), on_meta():
                data = DataSignature(self.facts.classes, self.facts.n_train)
                set_up(method, copy.deepcopy(student), copy.deepcopy(teacher), data)
        except Incompatible as error:
            return text_of(error)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - if it is one off the meta device too, the trial will fail
            return ""
        return ""


def _repetitions(trials: Iterable[Trial]) -> Iterator[str]:
    """Trials that only differ in what the suite calls them, each two once."""
    first: dict[str, Trial] = {}
    told = set()
    for trial in trials:
        other = first.setdefault(trial.id, trial)
        if other is trial or (other.pair, other.label, trial.pair, trial.label) in told:
            continue
        told.add((other.pair, other.label, trial.pair, trial.label))
        if other.pair == trial.pair:
            yield (
                f"methods: '{other.label}' and '{trial.label}' are the same trial on {trial.pair}: method "
                f"{trial.method} with equal settings; remove one, or change its settings"
            )
        else:
            yield (
                f"pairs: '{other.pair}' and '{trial.pair}' are the same pair: teachers {other.teacher.name} and "
                f"{trial.teacher.name} are equal in all but name; remove one, or change its teacher"
            )


def _foreign_source(offer: Offer[Any]) -> str:
    """The fingerprint of a model or data set that a plugin brings; our own changes raise the protocol instead."""
    return offer.fingerprint if _is_foreign(offer) else ""


def _is_foreign(offer: Offer[Any]) -> bool:
    return offer.provider.distribution != FIRST_PARTY


def method_fingerprint(registry: Registry, offer: Offer[Any], settings: Mapping[str, Any]) -> str:
    """A method's fingerprint; a combination's changes with its members'."""
    members = [member.fingerprint for member in _members(registry, offer, settings)]
    own: str = offer.fingerprint
    return content_hash({"own": own, "members": members}, 64) if members else own


def _members(registry: Registry, offer: Offer[Any], settings: Mapping[str, Any]) -> list[Offer[Any]]:
    """The methods that a method contains, and those that these contain."""
    tables = settings.get(getattr(offer.load(), "members_setting", "") or "")
    found: list[Offer[Any]] = []
    for table in tables if isinstance(tables, list | tuple) else ():
        if isinstance(table, Mapping) and isinstance(table.get("name"), str):
            member = registry.method(table["name"])
            inner = {**member.spec.presets, **{key: value for key, value in table.items() if key != "name"}}
            found += [member, *_members(registry, member, inner)]
    return found


def make_method(registry: Registry, name: str, settings: Mapping[str, Any]) -> Method:
    """A method, not yet set up, with all its settings. Methods that it contains may be any of the registry's."""

    def make(member: str, given: Mapping[str, Any]) -> Method:
        try:
            offer = registry.method(member)
        except PluginError as error:
            raise ValueError(f"name: {error}") from error
        resolved, problems = settings_of.resolve(offer.load(), {**offer.spec.presets, **given})
        if problems:
            raise ValueError(": ".join(problems[0]))
        return cast(Method, offer.load()(**copy.deepcopy(resolved)))

    with members_made_by(make):
        # A copy: settings may hold lists and tables, which the method could change.
        return cast(Method, registry.method(name).load()(**copy.deepcopy(dict(settings))))


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
