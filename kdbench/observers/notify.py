"""Calls observers one by one; a failing observer does not affect trials or other observers.

Each receives copies of its arguments. Changes to global state are undone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import pluggy

from kdbench import isolation
from kdbench.errors import text_of

DISABLED_AFTER = 3


class Notify(Protocol):
    """Calls a hook of observers, here or in another process."""

    def __call__(self, hook: str, /, **arguments: Any) -> None:
        """Never raises what an observer raises."""


class Notifier:
    """Calls lifecycle hooks. A plugin that raises is reported, and disabled after three failures."""

    def __init__(
        self,
        manager: pluggy.PluginManager,
        warn: Callable[[str], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """``stopping``: whether the user has requested a stop; a ``KeyboardInterrupt`` then comes from the user."""
        self._manager = manager
        self._warn = warn
        self._stopping = stopping
        self._failures: Counter[str] = Counter()
        self._originals = isolation.Originals()

    def __call__(self, hook: str, /, **arguments: Any) -> None:
        """Call ``hook`` on every plugin that is not disabled."""
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            name = implementation.plugin_name
            if self._failures[name] >= DISABLED_AFTER:
                continue
            given = [copy.deepcopy(arguments[key]) for key in implementation.argnames]
            for problem in self._problems(implementation, given, hook):
                self._failures[name] += 1
                last = self._failures[name] == DISABLED_AFTER
                end = "; it is disabled for the rest of this run" if last else ""
                self._warn(f"observer '{name}' {problem}{end}")

    def _problems(self, implementation: pluggy.HookImpl, given: list[Any], hook: str) -> list[str]:
        """Call an observer, and return problems as messages."""
        # First-party observers may install signal handlers.
        own = type(implementation.plugin).__module__.startswith("kdbench.")
        before = isolation.state()
        problems = []
        try:
            implementation.function(*given)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and self._stopping():
                raise
            problems.append(f"failed in {hook}: {type(error).__name__}: {text_of(error)}")
        changed = isolation.undo(before) + ([] if own else self._originals.undo())
        if changed:
            problems.append(f"{isolation.complaint(changed)} (in {hook})")
        return problems
