"""What plugins offer, and who provides it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from kdbench.discovery.settings import Declared, load_target, read_by_import, read_statically, source_of
from kdbench.discovery.sources import FIRST_PARTY, Source, read_source, recorded_hashes
from kdbench.errors import PluginError, did_you_mean, text_of
from kdbench.hookspecs import MethodSpec, ModelSpec, OptimizerSpec, ScheduleSpec, Spec
from kdbench.search import Search

LOCAL = "local"
"""The version of a local file."""

AnySpec = TypeVar("AnySpec", bound=Spec)


SUPPLIED: Mapping[type[Spec], tuple[str, ...]] = {
    ModelSpec: ("classes", "image_shape"),
    OptimizerSpec: ("lr", "weight_decay"),
    ScheduleSpec: ("epochs", "warmup_epochs", "lr"),
}
"""Keyword-only arguments that kdbench itself gives: they are no settings."""


@dataclass(frozen=True)
class Provider:
    """The distribution (or local file) that a plugin came with."""

    distribution: str
    version: str
    hash_source: bool
    """Whether code is identified by its source: all but what our own distribution installed, known by its version."""

    def __str__(self) -> str:
        return self.distribution if self.version == LOCAL else f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Offer(Generic[AnySpec]):
    """An offer and its provider. ``loaded`` is the class if the plugin returned the class itself."""

    spec: AnySpec
    provider: Provider
    loaded: Any = None
    code: Source | None = None
    """The source of a class that is in no module's file."""

    def load(self) -> Any:
        """Import the class or function."""
        if self.loaded is not None:
            return self.loaded
        try:
            with contained(self.provider, self.spec.target.partition(":")[0]):
                return load_target(self.spec.target)
        except Exception as error:
            raise PluginError(f"'{self.spec.name}' of {self.provider} failed to import: {explained(error)}") from error

    @property
    def declared(self) -> Declared:
        """Settings, summary and literal attributes, without an import if they can be read from the source."""
        declared = read_by_import(self.loaded) if self.loaded is not None else read_statically(self.spec.target)
        declared = declared or read_by_import(self.load())
        settings = dict(declared.settings)
        for key, value in self.spec.presets.items():
            if key in settings:
                settings[key] = type(settings[key])(value, settings[key].type)
        return Declared(settings, self.spec.summary or declared.summary, declared.attributes)

    @property
    def reference(self) -> str:
        """The paper."""
        return self.spec.reference or str(self.declared.attributes.get("paper", ""))

    @cached_property
    def source(self) -> Source | None:
        """The source files behind the target; None where the version identifies it, or no source is found."""
        if self.code is not None:
            return self.code
        if not self.provider.hash_source:
            return None
        path = (
            Path(getattr(sys.modules.get(self.loaded.__module__), "__file__", None) or "")
            if self.loaded is not None
            else source_of(self.spec.target)
        )
        if path is None or path.suffix != ".py" or not path.is_file():
            return None
        return read_source(path, self.provider.distribution)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the source behind the target; of what our own distribution installed, the version.

        Where there is no source, as of compiled modules, the hashes in the distribution's RECORD, else the version.
        """
        if self.source is not None:
            return self.source.digest
        recorded = recorded_hashes(self.provider.distribution) if self.provider.hash_source else {}
        if recorded:
            return hashlib.sha256(json.dumps(sorted(recorded.items())).encode()).hexdigest()
        return f"{self.provider.distribution}=={self.provider.version}"

    def to_json(self) -> dict[str, Any]:
        """The row of ``kdbench list --json``."""
        declared = self.declared
        row: dict[str, Any] = {
            "name": self.spec.name,
            "paper": self.reference,
            "summary": declared.summary,
            "distribution": self.provider.distribution,
            "version": self.provider.version,
            "settings": {
                key: value.to_json()
                for key, value in declared.settings.items()
                if key not in SUPPLIED.get(type(self.spec), ())
            },
        }
        if isinstance(self.spec, MethodSpec):
            reads = declared.attributes.get("reads", ("logits",))
            # A property's value depends on the settings.
            row["reads"] = sorted(reads) if isinstance(reads, Collection) else None
        return row


def searches_of(offer: Offer[MethodSpec]) -> Mapping[str, Search]:
    """The values that tuning tries, by setting: those of the offer, or else of its class.

    Raises ``PluginError`` for a setting that the method does not have.
    """
    found = offer.spec.search or getattr(offer.load(), "search", {})
    for key in found:
        if key not in offer.declared.settings:
            raise PluginError(
                f"'{offer.spec.name}' of {offer.provider}: search: '{key}' is not a setting"
                f"{did_you_mean(key, offer.declared.settings)}"
            )
    return found


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded."""

    name: str
    provider: Provider
    problem: str

    def __str__(self) -> str:
        return f"{self.provider} {self.problem}"


def explained(error: BaseException) -> str:
    """The error of loading a plugin, in words."""
    plain = isinstance(error, ImportError | PluginError)
    return text_of(error) if plain else f"{type(error).__name__}: {text_of(error)}".removesuffix(": ")


def contained(provider: Provider, module: str = "") -> AbstractContextManager[None]:
    """Around third-party code: it must not change global state."""
    # Where torch is not loaded nothing is trained, and plugins are listed without it.
    if provider.distribution == FIRST_PARTY or "torch" not in sys.modules or module in sys.modules:
        return nullcontext()
    from kdbench import isolation

    return isolation.contained(str(provider), isolation.Originals())
