"""Tell observers what happens, one by one: what goes wrong in one costs neither a trial nor the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pluggy

DISABLED_AFTER = 3


class Notifier:
    """Calls lifecycle hooks. A plugin that raises is reported, and disabled after three failures."""

    def __init__(self, manager: pluggy.PluginManager, warn: Callable[[str], None]) -> None:
        self._manager = manager
        self._warn = warn
        self._failures: Counter[str] = Counter()

    def __call__(self, hook: str, **arguments: Any) -> None:
        """Call ``hook`` on every plugin that is not disabled."""
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            name = implementation.plugin_name
            if self._failures[name] >= DISABLED_AFTER:
                continue
            try:
                implementation.function(*(arguments[key] for key in implementation.argnames))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin raises
                self._failures[name] += 1
                last = self._failures[name] == DISABLED_AFTER
                self._warn(
                    f"observer '{name}' failed in {hook}: {type(error).__name__}: {error}"
                    + ("; it is disabled for the rest of this run" if last else "")
                )
