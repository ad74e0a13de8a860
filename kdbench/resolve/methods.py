"""Methods by name and settings, with the methods that they contain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from kdbench.discovery import Offer, Registry
from kdbench.discovery import settings as settings_of
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.errors import PluginError
from kdbench.method import Method, members_made_by
from kdbench.suite.plan import content_hash


def foreign_source(offer: Offer[Any]) -> str:
    """The fingerprint of a model or data set that a plugin brings; our own changes raise the protocol instead."""
    return offer.fingerprint if is_foreign(offer) else ""


def is_foreign(offer: Offer[Any]) -> bool:
    """Whether a third party provides it."""
    return offer.provider.distribution != FIRST_PARTY


def method_fingerprint(registry: Registry, offer: Offer[Any], settings: Mapping[str, Any]) -> str:
    """A method's fingerprint; a combination's changes with its members'."""
    inner = [member.fingerprint for member in members(registry, offer, settings)]
    own: str = offer.fingerprint
    return content_hash({"own": own, "members": inner}, 64) if inner else own


def members(registry: Registry, offer: Offer[Any], settings: Mapping[str, Any]) -> list[Offer[Any]]:
    """The methods that a method contains, and those that these contain."""
    tables = settings.get(getattr(offer.load(), "members_setting", "") or "")
    found: list[Offer[Any]] = []
    for table in tables if isinstance(tables, list | tuple) else ():
        if isinstance(table, Mapping) and isinstance(table.get("name"), str):
            member = registry.method(table["name"])
            inner = {**member.spec.presets, **{key: value for key, value in table.items() if key != "name"}}
            found += [member, *members(registry, member, inner)]
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
