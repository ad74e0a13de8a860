"""Answers questions about names and settings from the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdbench import additions
from kdbench.discovery import SUPPLIED, Offer, Registry
from kdbench.discovery import settings as settings_of
from kdbench.errors import PluginError
from kdbench.hookspecs import Spec


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
