"""The shared state of one invocation: the suite, its data and folder, the device, and the observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from kdbench import additions
from kdbench.claims import Claims
from kdbench.data.base import Arrays
from kdbench.data.feed import Feed
from kdbench.data.open import channel_statistics, open_feed
from kdbench.data.splits import limit
from kdbench.engine.added import AddedMetrics
from kdbench.engine.device import Precision
from kdbench.errors import KdbenchError, ModelError, PluginError, text_of
from kdbench.hookspecs import RunInfo
from kdbench.isolation import contained
from kdbench.models.base import TappedModel
from kdbench.observers.notify import Notify
from kdbench.opening import Opened
from kdbench.recipe import Recipe
from kdbench.resolve import Resolver
from kdbench.results import DataUsed, Environment, SuiteFolder
from kdbench.session import Stop


@dataclass
class Context:
    """One invocation of ``kdbench run``."""

    opened: Opened
    folder: SuiteFolder
    info: RunInfo
    device: torch.device
    notify: Notify
    warn: Callable[[str], None]
    stop: Stop
    claims: Claims
    adopts_from: frozenset[str] | None = None
    """The ids of trials whose results other trials may adopt; None for all. With ``--fresh``, those trained again."""

    @property
    def resolver(self) -> Resolver:
        """Builds the suite's models, methods and data set."""
        return self.opened.resolver

    @cached_property
    def arrays(self) -> Arrays:
        """The data, loaded at first use: a finished suite does not need it."""
        return limit(self.resolver.load(), **self.resolver.limits)

    @cached_property
    def added(self) -> AddedMetrics:
        """The metrics that the suite adds."""
        return AddedMetrics(additions.metrics(self.opened.registry, self.opened.suite.metrics), self.warn)

    def network(self, name: str, recipe: Recipe | None = None, weights: str | None = None) -> TappedModel:
        """A network with the normalisation of this suite's images."""
        statistics = channel_statistics(self.resolver.facts, self.arrays)
        try:
            with contained(f"network {name}"):
                network = self.resolver.network(name, recipe, weights)
                network.accept_normalisation(*statistics)
        except (ModelError, PluginError):
            raise
        except KdbenchError as error:
            # Raised by a plugin. The same errors from kdbench would concern the whole run.
            raise ModelError(f"network {name}: {text_of(error)}") from error
        return network

    def feed(self, recipe: Recipe, seed: int) -> Feed:
        """The data feed of a recipe, for a seed."""
        return open_feed(
            self.arrays,
            self.resolver.facts,
            augmentation=self.resolver.parts(recipe).steps,
            batch_size=recipe.batch_size,
            seed=seed,
            device=self.device,
        )

    @cached_property
    def data(self) -> DataUsed:
        """The data's entry in the results."""
        arrays, sizes = self.arrays, self.resolver.facts
        mean, std = channel_statistics(sizes, arrays)
        return DataUsed(
            name=self.opened.suite.data.name,
            fingerprint=arrays.fingerprint,
            corrupt=arrays.corrupt,
            classes=sizes.classes,
            image_shape=sizes.image_shape,
            mean=tuple(mean),
            std=tuple(std),
            n_train=len(arrays.train.labels),
            n_test=len(arrays.test.labels),
        )

    def environment(self, recipe: Recipe) -> Environment:
        """The environment's entry in the results, for a recipe."""
        precision = Precision.choose(recipe.precision, self.device).name
        on_gpu: dict[str, Any] = {}
        if self.device.type == "cuda":
            engine = self.opened.suite.engine
            on_gpu = {
                "graphs": engine.graphs if engine.graphs != "off" else None,
                "deterministic": engine.deterministic,
            }
        return Environment(**{**self.info.environment, "precision": precision, **on_gpu})
