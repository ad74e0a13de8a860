"""What a recipe takes from plugins, resolved: its optimiser, its schedule and its augmentations."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from kdbench.data.augment import AugmentationStep, Draws
from kdbench.discovery import SUPPLIED, Offer, Registry, built_in
from kdbench.discovery import settings as settings_of
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.errors import SuiteError, in_words
from kdbench.hookspecs import KINDS, AugmentationSpec, OptimizerSpec, ScheduleSpec, Spec
from kdbench.isolation import Originals, contained
from kdbench.recipe import OWN_KEYS, Part, Recipe

AnySpec = TypeVar("AnySpec", bound=Spec)


@dataclass(frozen=True)
class Resolved(Generic[AnySpec]):
    """One part of a recipe: who offers it, and its settings, defaults included."""

    offer: Offer[AnySpec]
    settings: Mapping[str, Any]

    @property
    def spec(self) -> AnySpec:
        """What the plugin says about it."""
        return self.offer.spec

    @property
    def foreign(self) -> bool:
        """Whether a third party provides it."""
        return self.offer.provider.distribution != FIRST_PARTY

    def __call__(self, *given: Any, **supplied: Any) -> Any:
        """Call the target with its settings."""
        # A copy: settings may hold lists and tables, which the target could change.
        return self.offer.load()(*given, **supplied, **copy.deepcopy(dict(self.settings)))


@dataclass(frozen=True)
class Parts:
    """The resolved parts of a recipe."""

    recipe: Recipe
    optimizer: Resolved[OptimizerSpec]
    schedule: Resolved[ScheduleSpec]
    augmentation: tuple[Resolved[AugmentationSpec], ...]

    @classmethod
    def of(cls, recipe: Recipe, registry: Registry | None = None) -> Parts:
        """Look up a recipe's parts; without a registry, among the built-in ones.

        Raises:
            PluginError: there is no such part.
            SuiteError: its settings are wrong.
        """
        registry = registry or _built_in()
        return cls(
            recipe,
            _resolve(registry, OptimizerSpec, recipe.optimizer, "recipe.optimizer", _own(recipe, "optimizer")),
            _resolve(registry, ScheduleSpec, recipe.schedule, "recipe.schedule", _own(recipe, "schedule")),
            tuple(
                _resolve(registry, AugmentationSpec, part, f"recipe.augmentation[{index}]")
                for index, part in enumerate(recipe.augmentation)
            ),
        )

    @property
    def steps(self) -> tuple[AugmentationStep, ...]:
        """The augmentations, for a feed."""
        return tuple(
            AugmentationStep(part.spec.name, part.spec.acts_on, part.offer.load(), part.settings, part.foreign)
            for part in self.augmentation
        )

    @property
    def canonical(self) -> Recipe:
        """The recipe in the form that identifies a trial: augmentations with all settings, the others with those that
        differ from the defaults.
        """
        return self.recipe.model_copy(
            update={
                "optimizer": _shortened(self.recipe.optimizer, self.optimizer),
                "schedule": _shortened(self.recipe.schedule, self.schedule),
                "augmentation": tuple(
                    Part(name=part.name, **_plain(_without_presets(found)))
                    for part, found in zip(self.recipe.augmentation, self.augmentation, strict=True)
                ),
            }
        )

    @property
    def sources(self) -> dict[str, str]:
        """Fingerprints of third parties' parts, by ``optimizer``, ``schedule`` and ``augmentation.NAME``."""
        return {key: part.offer.fingerprint for key, part in self._named() if part.foreign}

    @property
    def foreign(self) -> dict[str, Offer[Any]]:
        """Third parties' parts, by the same keys."""
        return {key: part.offer for key, part in self._named() if part.foreign}

    def problems(self, image_shape: tuple[int, int, int]) -> Iterator[tuple[str, str]]:
        """Parts that fail when they are tried on a weight and on two images, as (key of the recipe, what is wrong).

        Built-in parts are not tried: their settings have been checked.
        """
        recipe, decay = self.recipe, self.recipe.weight_decay
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        tried: list[tuple[str, Resolved[Any], Callable[[], object]]] = [
            (
                "optimizer",
                self.optimizer,
                lambda: self.optimizer([{"params": [weight], "weight_decay": decay}], lr=recipe.lr, weight_decay=decay),
            ),
            (
                "schedule",
                self.schedule,
                lambda: self.schedule(
                    float(recipe.warmup_epochs), epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs, lr=recipe.lr
                ),
            ),
        ]
        draws = Draws(torch.Generator().manual_seed(0), np.random.default_rng(0))
        images = torch.zeros(2, *image_shape, dtype=torch.uint8)
        for index, (part, step) in enumerate(zip(self.augmentation, self.steps, strict=True)):
            batch = images if step.acts_on in {"pixels", "size"} else images.float()
            more = (torch.zeros(2, dtype=torch.int64),) if step.acts_on == "mixes" else ()
            tried.append((f"augmentation[{index}]", part, partial(step, batch, *more, draws)))
        for key, part, action in tried:
            if part.foreign or ":" in part.spec.name:
                kind = next(kind.name for kind in KINDS if kind.spec is type(part.spec))
                try:
                    with contained(f"{kind} '{part.spec.name}'", Originals()):
                        action()
                except Exception as error:  # noqa: BLE001 - a plugin's code may raise anything
                    said = in_words(error)
                    yield key, said if part.spec.name in said else f"{kind} '{part.spec.name}' fails: {said}"

    def _named(self) -> Iterator[tuple[str, Resolved[Any]]]:
        yield "optimizer", self.optimizer
        yield "schedule", self.schedule
        for part in self.augmentation:
            yield f"augmentation.{part.spec.name}", part


@cache
def _built_in() -> Registry:
    return built_in()


def _resolve(
    registry: Registry, spec: type[AnySpec], part: Part, where: str, own: Mapping[str, Any] | None = None
) -> Resolved[AnySpec]:
    offer = registry.find(spec, part.name)
    given = {**offer.spec.presets, **part.settings}
    settings, problems = settings_of.resolve(offer.load(), given, frozenset(SUPPLIED.get(spec, ())))
    if problems:
        raise SuiteError([f"{where}.{key}: {what}" for key, what in problems])
    # The recipe has checked its own keys, which the part's type need not take: whole epochs, not fractions.
    return Resolved(offer, {**settings, **(own or {})})


def _own(recipe: Recipe, key: str) -> dict[str, Any]:
    """The settings of a built-in part that are keys of the recipe."""
    names = OWN_KEYS[key].get(getattr(recipe, key).name, ())
    return {name: recipe.drop_epochs if name == "drops" else getattr(recipe, name) for name in names}


def _shortened(part: Part, found: Resolved[Any]) -> Part:
    """Without settings that equal their defaults."""
    supplied = frozenset(SUPPLIED.get(type(found.spec), ()))
    defaults = settings_of.resolve(found.offer.load(), found.spec.presets, supplied)[0]
    given = {key: value for key, value in _plain(part.settings).items() if value != _plain(defaults).get(key)}
    return Part(name=part.name, **given)


def _without_presets(found: Resolved[Any]) -> dict[str, Any]:
    # A variant's name says what its presets are.
    return {key: value for key, value in found.settings.items() if found.spec.presets.get(key) != value}


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples become lists."""
    copied: dict[str, Any] = json.loads(json.dumps(dict(content), default=dict))
    return copied
