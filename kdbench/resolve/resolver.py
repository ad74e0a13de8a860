"""Builds the data set, networks, methods and recipes that a suite names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from kdbench.data.base import Arrays, DataFacts, Dataset
from kdbench.data.loaded import check_loaded
from kdbench.data.splits import limit_facts
from kdbench.discovery import Offer, Registry
from kdbench.discovery import settings as settings_of
from kdbench.errors import (
    DataError,
    KdbenchError,
    ModelError,
    PluginError,
    SuiteError,
    in_words,
    text_of,
)
from kdbench.isolation import Originals, contained, restored
from kdbench.method import Method, Signature
from kdbench.models.base import TappedModel, contract_problems, from_offer
from kdbench.models.shapes import planned_signature
from kdbench.models.weights import load_weights
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.resolve.methods import foreign_source, is_foreign, make_method, members
from kdbench.suite.load import pair_recipe
from kdbench.suite.plan import TeacherPlan, Trial
from kdbench.suite.schema import Suite
from kdbench.suite.tables import key_of
from kdbench.words import shown

_WEIGHTS = frozenset({".pth", ".pt", ".safetensors", ".tar", ".bin"})
"""The endings of files of weights."""


@dataclass
class Resolver:
    """Builds what a suite names. One for a run: it remembers facts and signatures."""

    suite: Suite
    registry: Registry
    folder: Path = field(default_factory=Path)
    """The suite file's folder, to which paths of weights are relative."""
    _signatures: dict[str, Signature] = field(default_factory=dict)

    @cached_property
    def originals(self) -> Originals:
        """The functions that training relies on, before any plugin was called."""
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
        source = foreign_source(self.registry.dataset(self.suite.data.name))
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
            with restored(self.originals):
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
        return is_foreign(self.registry.model(name))

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
            *members(self.registry, self.registry.method(trial.method), trial.settings),
        ]
        foreign = {
            "network": self.is_foreign_model(trial.student),
            "method": any(is_foreign(offer) for offer in methods),
        }
        of_recipe = {"optimizer", "schedule"} & self.parts(trial.recipe).foreign.keys()
        return {part for part, is_foreign in foreign.items() if is_foreign} | of_recipe

    def code(self, trial: Trial) -> dict[str, bytes]:
        """The source files that identify a trial's parts, by ``part/name``; nothing of what a version identifies."""
        method = self.registry.method(trial.method)
        parts = [("method", method)]
        parts += [
            (f"method-{number}", offer)
            for number, offer in enumerate(members(self.registry, method, trial.settings), 1)
        ]
        others: dict[str, Offer[Any]] = {
            "student": self.registry.model(trial.student),
            "teacher": self.registry.model(trial.teacher.model),
            "data": self.registry.dataset(self.suite.data.name),
        }
        others |= self.parts(trial.recipe).foreign
        parts += [(part, offer) for part, offer in others.items() if foreign_source(offer)]
        return {
            f"{part}/{name}": content
            for part, offer in parts
            if offer.source is not None
            for name, content in offer.source.files.items()
        }

    def teachers(self, name: str) -> dict[int, TeacherPlan]:
        """How the teachers of a name come about, by the seed of the students that learn from them.

        All seeds have the same teacher if the suite says so, or if one file of weights is given.
        """
        table, seeds = self.suite.teacher(name), self.suite.seeds
        recipe = self.recipe(table.recipe) if table.weights is None else None
        shared = TeacherPlan(
            name=name,
            model=table.model,
            data=self.data_identity,
            recipe=recipe,
            weights=None,
            weights_sha256=None,
            seed=table.seed,
            model_source=foreign_source(self.registry.model(table.model)),
            part_sources=self.parts(recipe).sources if recipe else {},
            expected_top1=table.expected_top1,
            tolerance=table.tolerance,
        )
        given = table.weights or ()
        files = self._weights(name, table.model, [given] if isinstance(given, str) else given)
        if isinstance(given, str) or self.suite.teacher_seeds == "single":
            weights, digest = files[0] if files else (None, None)
            return dict.fromkeys(seeds, replace(shared, weights=weights, weights_sha256=digest))
        several = replace(shared, is_one_of_several=len(seeds) > 1)
        if not files:
            return {seed: replace(several, seed=seed) for seed in seeds}
        return {
            seed: replace(several, seed=seed, weights=weights, weights_sha256=digest)
            for seed, (weights, digest) in zip(seeds, files, strict=True)
        }

    def _weights(self, name: str, model: str, given: Sequence[str]) -> list[tuple[str, str | None]]:
        """Given weights of a teacher, each with the SHA-256 of its file; None if a model library fetches it."""
        found: list[tuple[str, str | None]] = []
        for index, weights in enumerate(given):
            where = key_of(("teachers", name, "weights", *([index] if len(given) > 1 else [])))
            path = self.folder / weights
            if os.path.isfile(path):
                weights, digest = str(path), hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.suffix in _WEIGHTS or not self._fetches_weights(model):
                raise SuiteError([f"{where}: {shown(str(path))[1:-1]}: no such file"])
            else:
                digest = None
            for other, known in found:
                if digest is not None and digest == known:
                    raise SuiteError([f"{where}: {weights}: has the content of {other}; each seed needs other weights"])
            found.append((weights, digest))
        return found
