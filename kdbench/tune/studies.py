"""Optuna's studies, one for each method: which configuration is tried next. The only module that imports Optuna."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.search import Search
from kdbench.suite.plan import content_hash
from kdbench.tune.space import Space

if TYPE_CHECKING:
    import optuna

RANDOM = 4
"""So many configurations of a method are the default and random ones, before earlier results guide the sampler."""
DIGITS = 3
"""Significant digits of a tried value: more cannot be told apart, and nobody wants to read them."""


def check_installed() -> None:
    """Raise ``KdbenchError`` if Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise KdbenchError("kdbench tune needs optuna: pip install 'kdbench[tune]'") from None


class Studies:
    """The studies of a results folder, stored in one journal."""

    def __init__(self, path: Path) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        # Each configuration is shown by kdbench.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._storage = JournalStorage(JournalFileBackend(str(path)))

    def of(self, space: Space, objective: str) -> MethodStudy:
        """The study of a method. Another one where anything has changed that decides its results."""
        import optuna

        searches = {key: search.to_toml() for key, search in space.searches.items()}
        identity = {"trial": space.trial.id, "searches": searches, "default": dict(space.default), "by": objective}
        key = content_hash(identity)
        study = optuna.create_study(
            study_name=f"{space.label} {key}", storage=self._storage, direction="maximize", load_if_exists=True
        )
        return MethodStudy(study, space, int(key[:7], 16))


class MethodStudy:
    """The configurations of one method, numbered from 0, the default."""

    def __init__(self, study: optuna.Study, space: Space, seed: int) -> None:
        self._study = study
        self._space = space
        self._seed = seed

    def configuration(self, number: int) -> dict[str, Any]:
        """The settings of a configuration. A new one is the sampler's answer to the earlier results."""
        import optuna

        known = self._study.get_trials(deepcopy=False)
        if number < len(known):
            return self._settings(number, known[number].params)
        # A sampler for each number: a resumed study asks what an uninterrupted one asks.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=self._seed + number, n_startup_trials=RANDOM, constant_liar=True
            )
        if number == 0:
            self._study.enqueue_trial(dict(self._space.default))
        distributions = {
            key: _distribution(search, self._space.default[key]) for key, search in self._space.searches.items()
        }
        return self._settings(number, self._study.ask(distributions).params)

    def _settings(self, number: int, params: Mapping[str, Any]) -> dict[str, Any]:
        if number == 0:
            return dict(self._space.default)
        return {key: _rounded(params[key], search) for key, search in self._space.searches.items()}

    def is_told(self, number: int) -> bool:
        """Whether the result of a configuration is known."""
        known = self._study.get_trials(deepcopy=False)
        return number < len(known) and known[number].state.is_finished()

    def tell(self, number: int, value: float | None, reason: str, *, diverged: bool = False) -> None:
        """Store a result: a validation accuracy, or why there is none."""
        from optuna.trial import TrialState

        if reason:
            self._study.set_user_attr(f"reason {number}", reason)
        if value is not None:
            self._study.tell(number, value)
        else:
            # The sampler avoids what diverges; a failure says nothing about the settings.
            self._study.tell(number, state=TrialState.PRUNED if diverged else TrialState.FAIL)

    def results(self, trials: int) -> list[tuple[float | None, str]]:
        """The value of each configuration below ``trials``, and why it has none."""
        from optuna.trial import TrialState

        reasons = self._study.user_attrs
        return [
            (one.value if one.state is TrialState.COMPLETE else None, str(reasons.get(f"reason {one.number}", "")))
            for one in self._study.get_trials(deepcopy=False)[:trials]
            if one.state.is_finished()
        ]


def _distribution(search: Search, default: Any) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if search.choices:
        return CategoricalDistribution(search.choices)
    low, high = search.bounds
    if isinstance(default, int):
        return IntDistribution(math.ceil(low), math.floor(high), log=search.log)
    return FloatDistribution(low, high, log=search.log)


def _rounded(value: Any, search: Search) -> Any:
    if not isinstance(value, float) or search.choices:
        return value
    low, high = search.bounds
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)
