"""From a suite's path or name to the suite with everything that it names, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdbench import plugins as plugin_room
from kdbench.resolve import Catalogue, Resolver
from kdbench.suite import load
from kdbench.suite.plan import Plan
from kdbench.suite.schema import Suite


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
