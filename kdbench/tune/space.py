"""What is tried of each method of a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kdbench.discovery import searches_of
from kdbench.errors import SuiteError
from kdbench.opening import Opened
from kdbench.search import Search
from kdbench.status import Status
from kdbench.suite.plan import Trial
from kdbench.suite.schema import MethodTable, Pair

FACTOR = "lr_factor"
"""The key that is tuned of every method, beside its settings."""


@dataclass(frozen=True)
class Space:
    """What is tried of one method, on one pair and with one seed."""

    trial: Trial
    """The trial of the suite itself, which has the default configuration."""
    settings: Mapping[str, Any]
    """As the suite gives them, for this pair."""
    searches: Mapping[str, Search]
    """Values by setting; empty if there is nothing to tune."""
    default: Mapping[str, Any]
    """The values of these settings in the suite."""
    lr_factor: float = 1.0
    """The factor that the suite gives."""
    note: str = ""
    """Why the method is not tuned."""

    @property
    def label(self) -> str:
        """What the suite calls the method."""
        return self.trial.label

    def configurations(self, trials: int) -> int:
        """How many are trained, with a budget of ``trials``."""
        if self.trial.status is Status.SKIPPED:
            return 0
        return trials if self.searches else 1


def spaces(opened: Opened, pair: Pair, seed: int, globs: Sequence[str] = ()) -> list[Space]:
    """The spaces of the chosen methods. Raises ``SuiteError`` where a range cannot contain the suite's own value."""
    planned = {trial.label: trial for trial in opened.plan.trials if trial.pair == pair.name and trial.seed == seed}
    found, problems = [], []
    for method in opened.suite.methods:
        if globs and not any(fnmatchcase(name, glob) for glob in globs for name in (method.name, method.shown)):
            continue
        trial = planned[method.shown]
        given = {**method.settings, **pair.methods.get(method.shown, {})}
        if trial.status is Status.SKIPPED:
            found.append(Space(trial, given, {}, {}, method.lr_factor, trial.reason))
            continue
        searches, default = {}, {}
        for key, (search, required) in _searches(opened, method).items():
            value = method.lr_factor if key == FACTOR else trial.settings[key]
            widened, problem = _with_value(search, value)
            if problem and required:
                problems.append(f"{opened.tables.where(('tune', method.shown, key))}: {problem}")
            elif not problem and len(set(widened.values)) > 1:
                searches[key], default[key] = widened, value
        note = "" if searches else "nothing to tune"
        found.append(Space(trial, given, searches, default, method.lr_factor, note))
    if problems:
        raise SuiteError(problems)
    return found


def _searches(opened: Opened, method: MethodTable) -> dict[str, tuple[Search, bool]]:
    """Values by setting, and whether the suite itself asks for them."""
    declared = {key: (search, False) for key, search in searches_of(opened.registry.method(method.name)).items()}
    own = {key: (search, True) for key, search in opened.suite.tune.methods.get(method.shown, {}).items()}
    return {FACTOR: (opened.suite.tune.lr_factor, False), **declared, **own}


def _with_value(search: Search, value: Any) -> tuple[Search, str]:
    """The same search with ``value``, the default, among its values; or why that is impossible.

    The default is one of the configurations, so that tuning never chooses from a range that excludes it.
    """
    if search.choices:
        if not isinstance(value, bool | int | float | str):
            return search, f"the suite's value {value!r} cannot be one of choices; set another one in the suite"
        known = value in search.choices
        return (search if known else Search(choices=(value, *search.choices))), ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return search, f"the suite's value {value!r} is not a number; give choices"
    if search.log and value <= 0:
        return search, f"the suite's value {value!r} cannot be in a logarithmic range; remove log = true"
    low, high = search.bounds
    return search.model_copy(update={"low": min(low, value), "high": max(high, value)}), ""
