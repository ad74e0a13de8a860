"""What a suite adds to each evaluation and to its report: metrics, sections and figures of plugins."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from kdbench.discovery import Offer, Registry
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.errors import PluginError
from kdbench.hookspecs import KINDS, MetricSpec
from kdbench.results.planned import ShownMetric, taken_names
from kdbench.results.record import first_problem

EVERYWHERE = {
    "metrics": "is measured of every student",
    "sections": "is in every report",
    "figures": "is in every report",
}
"""What the built-in ones need no line in a suite for, by the suite's key."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names become columns, anchors of a page and names of files."""


def problems(registry: Registry, key: str, name: str) -> list[str]:
    """What is wrong with an entry ``name`` of a suite's ``metrics``, ``sections`` or ``figures``."""
    kind = next(kind for kind in KINDS if kind.plural == key)
    try:
        offer = registry.find(kind.spec, name)
        if offer.provider.distribution == FIRST_PARTY:
            return [f"'{name}' {EVERYWHERE[key]}; remove it"]
        check_name(registry, kind.name, offer)
        if kind.spec is MetricSpec:
            _check_metric(registry.find(MetricSpec, name))
    except PluginError as error:
        return [str(error)]
    return []


def metrics(registry: Registry, names: Iterable[str]) -> tuple[Offer[MetricSpec], ...]:
    """The metrics that a suite adds. Raises ``PluginError`` where one is not on offer."""
    return tuple(registry.find(MetricSpec, name) for name in names)


def check_name(registry: Registry, kind: str, offer: Offer[Any]) -> None:
    """Raise ``PluginError`` where a page or table cannot have something under this name; ``kind``: in messages."""
    name, who = offer.spec.name, offer.provider
    if not NAME.fullmatch(name):
        raise PluginError(f"{kind} '{name}' of {who}: must be named by letters, digits, '_', '.' and '-'; rename it")
    own = {o.spec.name for o in registry.offers[type(offer.spec)] if o.provider.distribution == FIRST_PARTY}
    if name in own:
        raise PluginError(f"{kind} '{name}' of {who}: has the name of one of kdbench's own; rename it")


def _check_metric(offer: Offer[MetricSpec]) -> None:
    spec, who = offer.spec, offer.provider
    if spec.name in taken_names() or spec.name.startswith(("term_", "validation_")):
        raise PluginError(f"metric '{spec.name}' of {who}: is the name of a field or column of results; rename it")
    try:
        ShownMetric.of(spec)
    except ValidationError as error:
        raise PluginError(f"metric '{spec.name}' of {who}: {first_problem(error)}") from error
    if not callable(offer.load()):
        raise PluginError(f"metric '{spec.name}' of {who}: {spec.target} is no function")
