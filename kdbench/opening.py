"""From a suite's path or name to the suite with everything that it names, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdbench import additions, discovery
from kdbench.errors import DataError, ModelError, PluginError, SuiteError
from kdbench.resolve import RegistryCatalogue, Resolver, plan_trials
from kdbench.results import PlanRecord
from kdbench.suite import load, plausible
from kdbench.suite.plan import Plan
from kdbench.suite.schema import Suite
from kdbench.suite.tables import Tables, split_override
from kdbench.words import shown


@dataclass(frozen=True)
class Opened:
    """A suite with everything that it names."""

    given: Path | Mapping[str, Any]
    """The suite's file, or the mapping that it was given as."""
    suite: Suite
    registry: discovery.Registry
    resolver: Resolver
    tables: Tables
    """As they are written."""
    overrides: tuple[str, ...] = ()
    plugins: tuple[discovery.Local, ...] = ()
    """Files and classes, beside those that the suite names."""

    @cached_property
    def report_name(self) -> str:
        """What the report of the suite, unfiltered and with these overrides, is called."""
        from kdbench.report.naming import report_name  # pandas, which a plan does not need

        renamed = any(split_override(override)[0] == "name" for override in self.overrides)
        base = self.suite.name if renamed else load.report_name(self.given, self.suite.name)
        return report_name(base, self.overrides)

    def record(self, plan: Plan | None = None) -> PlanRecord:
        """What a report reads of a plan of this suite."""
        path = str(self.given) if isinstance(self.given, Path) else None
        files = [str(plugin) for plugin in self.plugins if isinstance(plugin, str | Path)]
        classes = [plugin.__name__ for plugin in self.plugins if isinstance(plugin, type)]
        metrics = [offer.spec for offer in additions.metrics(self.registry, self.suite.metrics)]
        return PlanRecord.of(plan or self.plan, path, self.overrides, files, classes, metrics)

    @cached_property
    def plan(self) -> Plan:
        """All trials of the suite. Errors name the suite's file."""
        with _named(self.tables.path):
            with _named("data"):
                shape = self.resolver.facts.image_shape
            problems = list(plausible.size_problems(self.suite, shape, self.resolver.lengths))
            if not problems:
                return plan_trials(self.resolver)
        raise SuiteError([f"{self.tables.where(location)}: {what}" for location, what in problems])

    @property
    def remarks(self) -> list[str]:
        """Probable mistakes in a suite that can be trained: ``file: key: what``."""
        with _named(self.tables.path), _named("data"):
            n_train = self.resolver.facts.n_train
        found = plausible.remarks(self.suite, n_train)
        return [f"{self.tables.where(location)}: {what}" for location, what in found]


def open_suite(
    suite: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[discovery.Local] = (),
) -> Opened:
    """Read a suite file (or shipped suite, or a mapping with a suite file's keys), load its plugins, check every name.

    ``plugins`` are files and ``Method`` classes. A mapping's paths are relative to the working folder, and errors call
    it ``<suite>``. Raises ``SuiteError`` with all problems found, ``PluginError`` for a plugin that cannot be used.
    """
    given = suite if isinstance(suite, Mapping) else load.locate(suite)
    tables = load.read(given, overrides)
    folder = given.parent if isinstance(given, Path) else Path.cwd()
    registry = discovery.discover(plugins)
    for index, file in enumerate(load.plugin_files(folder, tables)):
        with _named(tables.where(("plugins", index))):
            discovery.add_file(registry, file)
    checked = load.load(tables.path, tables, RegistryCatalogue(registry))
    resolver = Resolver(checked, registry, folder)
    return Opened(given, checked, registry, resolver, tables, tuple(overrides), tuple(plugins))


@contextmanager
def _named(place: Path | str) -> Iterator[None]:
    """Let errors open with the file or key that they come from."""
    try:
        yield
    except SuiteError as error:
        raise SuiteError([f"{place}: {problem}" for problem in error.problems]) from error
    except (DataError, ModelError, PluginError) as error:
        text = str(error)
        raise type(error)(text if text.startswith(f"{place}.") else f"{place}: {text}") from error
    except OSError as error:  # such as a path longer than the system allows
        name = shown(str(error.filename or ""))[1:-1]
        raise DataError(f"{place}: {name}: {error.strerror or error}") from error
