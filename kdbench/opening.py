"""From a suite's path or name to the suite with everything that it names, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
    def report_name(self) -> str:
        """What the report of the suite, unfiltered and with these overrides, is called."""
        from kdbench.report.naming import report_name  # pandas, which a plan does not need

        renamed = any(override.partition("=")[0].strip() == "name" for override in self.overrides)
        base = self.suite.name if renamed else load.report_name(self.path, self.suite.name)
        return report_name(base, self.overrides)

    def record(self, plan: Plan | None = None) -> dict[str, Any]:
        """What a report reads of a plan of this suite."""
        return (plan or self.plan).record(str(self.path), self.overrides, self.plugins)

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
