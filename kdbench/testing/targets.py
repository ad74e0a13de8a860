"""The targets of ``kdbench check``: the name of a method or model, a plugin file, a package, or a class."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.discovery import ADAPTERS, Offer, Provider, Registry, discover
from kdbench.errors import KdbenchError, PluginError, did_you_mean
from kdbench.hookspecs import MethodSpec, ModelSpec
from kdbench.method import Method
from kdbench.testing.subject import Examinee


@dataclass(frozen=True)
class Target:
    """The selected methods and models."""

    examinees: Sequence[Examinee]
    registry: Registry
    models: Sequence[Offer[ModelSpec]] = ()
    not_checked: Mapping[str, str] = field(default_factory=dict)
    """Methods of a file or package that cannot be checked with default settings, with the reason."""


def find(
    target: str | Path | type[Method],
    settings: Mapping[str, Any] | None = None,
    plugins: Iterable[str | Path] = (),
) -> Target:
    """The methods and models that ``target`` names; ``settings`` are those that differ from the methods' defaults.

    Raises:
        PluginError: there is no such target, it cannot be loaded, or a setting is invalid.
        KdbenchError: settings are given, but the target has no method.
    """
    given = settings or {}
    if isinstance(target, type):
        return Target([Examinee.of(_offer(target), given)], discover(plugins))
    path = Path(target)
    if path.suffix == ".py":
        registry = discover([*plugins, path])
        offers: Sequence[Offer[MethodSpec]] = [o for o in registry.methods if _is_from(o.provider, path)]
        models: Sequence[Offer[ModelSpec]] = [o for o in registry.models if _is_from(o.provider, path)]
        if not offers and not models:
            raise PluginError(
                f"{path}: contains no method and no model; a class derived from kdbench.method.Method is a method; the "
                "hook kdbench_models adds models"
            )
    else:
        registry = discover(plugins)
        offers, models = _named(str(target), registry)
    if given and not offers:
        raise KdbenchError(f"--set {next(iter(given))}: '{target}' is a model; only methods have settings here")
    if len(offers) == 1:
        return Target([Examinee.of(offers[0], given)], registry, models)
    examinees, not_checked = [], {}
    for offer in offers:
        try:
            examinees.append(Examinee.of(offer, given))
        except PluginError as problem:
            not_checked[offer.spec.name] = str(problem)
    return Target(examinees, registry, models, not_checked)


def _offer(method: type[Method]) -> Offer[MethodSpec]:
    name = method.__dict__.get("name", method.__name__.lower())
    spec = MethodSpec(name, f"{method.__module__}:{method.__qualname__}")
    return Offer(spec, Provider(method.__module__, "local", hash_source=True), loaded=method)


def _is_from(provider: Provider, path: Path) -> bool:
    return provider.version == "local" and provider.distribution == path.name


def _named(target: str, registry: Registry) -> tuple[Sequence[Offer[MethodSpec]], Sequence[Offer[ModelSpec]]]:
    offers = [registry.method(target)] if _is_offered(target, registry.methods) else []
    is_model = _is_offered(target, registry.models) or (ModelSpec, target.partition(":")[0]) in ADAPTERS
    models = [registry.model(target)] if is_model else []
    if offers or models:
        return offers, models
    of_distribution = [o for o in registry.methods if _normalised(o.provider.distribution) == _normalised(target)]
    models = [o for o in registry.models if _normalised(o.provider.distribution) == _normalised(target)]
    if of_distribution or models:
        return of_distribution, models
    everything: list[Offer[Any]] = [*registry.methods, *registry.models]
    known = {o.spec.name for o in everything} | {o.provider.distribution for o in everything}
    broken = "".join(f" ({item})" for item in registry.broken)
    raise PluginError(f"no method, model or package is called '{target}'{did_you_mean(target, known)}{broken}")


def _is_offered(name: str, offers: Iterable[Offer[Any]]) -> bool:
    return any(name in (o.spec.name, f"{o.provider.distribution}:{o.spec.name}") for o in offers)


def _normalised(distribution: str) -> str:
    """The normalised name of a package, as in package indexes."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` texts to settings; a value is TOML, otherwise the text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise KdbenchError(f"--set {pair}: must be KEY=VALUE")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = text
    return settings
