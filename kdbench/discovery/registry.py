"""All offers by kind and name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

import kdbench
from kdbench import hookspecs
from kdbench.discovery.offer import LOCAL, AnySpec, Broken, Offer, Provider
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.errors import PluginError, did_you_mean, nearest
from kdbench.hookspecs import (
    KINDS,
    AugmentationSpec,
    DatasetSpec,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    Spec,
)

ADAPTERS: Mapping[tuple[type[Spec], str], tuple[str, str]] = {
    (ModelSpec, "torchvision"): ("kdbench.models.torchvision:build", "name"),
    (ModelSpec, "timm"): ("kdbench.models.timm:build", "name"),
    (OptimizerSpec, "timm"): ("kdbench.engine.optimizer:timm_optimizer", "name"),
    (AugmentationSpec, "torchvision"): ("kdbench.data.augment:torchvision_transform", "transform"),
}
"""Libraries whose parts go by ``library:NAME``: the target, and its setting that takes NAME."""


@dataclass
class Registry:
    """All offers of the plugins."""

    manager: pluggy.PluginManager
    offers: dict[type[Spec], list[Offer[Any]]] = field(default_factory=lambda: {kind.spec: [] for kind in KINDS})
    broken: list[Broken] = field(default_factory=list)
    plugins: list[tuple[str, Provider]] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    """The local files loaded."""

    @property
    def methods(self) -> list[Offer[MethodSpec]]:
        """All methods, in the order in which their plugins were loaded."""
        return self.offers[MethodSpec]

    @property
    def models(self) -> list[Offer[ModelSpec]]:
        """All networks that are registered."""
        return self.offers[ModelSpec]

    @property
    def datasets(self) -> list[Offer[DatasetSpec]]:
        """All data sets."""
        return self.offers[DatasetSpec]

    def method(self, name: str) -> Offer[MethodSpec]:
        """The method called ``name`` (``distribution:name`` where two share it)."""
        return self.find(MethodSpec, name)

    def dataset(self, name: str) -> Offer[DatasetSpec]:
        """The data set called ``name``."""
        return self.find(DatasetSpec, name)

    def model(self, name: str) -> Offer[ModelSpec]:
        """The network called ``name``; ``torchvision:NAME`` and ``timm:NAME`` need no registration."""
        return self.find(ModelSpec, name)

    def find(self, spec: type[AnySpec], name: str) -> Offer[AnySpec]:
        """What of a kind is called ``name`` (``distribution:name`` where two share it).

        Raises ``PluginError`` where there is none, or several.
        """
        kind = next(kind.name for kind in KINDS if kind.spec is spec)
        library, _, rest = name.partition(":")
        if rest and (spec, library) in ADAPTERS:
            target, setting = ADAPTERS[spec, library]
            adapter = spec(name, target, {setting: rest})
            return Offer(adapter, Provider(FIRST_PARTY, kdbench.__version__, hash_source=False))
        offers: list[Offer[AnySpec]] = self.offers[spec]
        found = [o for o in offers if name in (o.spec.name, f"{o.provider.distribution}:{o.spec.name}")]
        if len(found) == 1:
            return found[0]
        if len({o.provider.distribution for o in found}) < len(found):
            who = " and ".join(sorted({str(o.provider) for o in found}))
            raise PluginError(f"{kind} '{name}' is offered more than once by {who}; rename one")
        if len(found) > 1:
            found.sort(key=lambda o: o.provider.distribution)
            who = " and ".join(str(o.provider) for o in found)
            names = " or ".join(f"'{o.provider.distribution}:{o.spec.name}'" for o in found)
            raise PluginError(f"{kind} '{name}' is offered by {who}; write {names}")
        known = {o.spec.name for o in offers}
        hint = did_you_mean(name, known)
        if nearest(name, known) is None:
            hint += "; load local files with -p, or with plugins in the suite"
        broken = "".join(f" ({item})" for item in self.broken)
        raise PluginError(f"{kind} '{name}' is not registered{hint}{broken}")

    def rows(self, offers: Iterable[Offer[AnySpec]]) -> list[dict[str, Any]]:
        """The rows of ``kdbench list --json``. An offer that cannot be imported is added to ``broken``."""
        rows = []
        for offer in offers:
            try:
                rows.append(offer.to_json())
            except PluginError as error:
                self.broken.append(Broken(offer.spec.name, offer.provider, f"has an invalid offer: {error}"))
        return rows

    def to_json(self) -> list[dict[str, Any]]:
        """The rows of ``kdbench list plugins --json``."""
        rows: list[dict[str, Any]] = [
            {"name": name, "distribution": p.distribution, "version": p.version, "problem": None}
            for name, p in self.plugins
        ]
        rows += [
            {
                "name": b.name,
                "distribution": b.provider.distribution,
                "version": b.provider.version,
                "problem": b.problem,
            }
            for b in self.broken
        ]
        return rows

    def add(self, name: str, plugin: Any, provider: Provider) -> None:
        """Register a loaded plugin and its offers; if it raises, nothing is registered."""
        _check_hooks(self.manager, plugin)
        offered = {
            kind.spec: [_offer(item, kind.spec, provider, plugin) for item in _call(plugin, kind.hook)]
            for kind in KINDS
        }
        if provider.version == LOCAL and not any(hasattr(plugin, kind.hook) for kind in KINDS):
            offered[MethodSpec] = [_offer(item, MethodSpec, provider, plugin) for item in _method_classes(plugin)]
        try:
            self.manager.register(plugin, name=name)
        except pluggy.PluginValidationError as error:
            # Pluggy stops halfway: the hooks before the wrong one are in.
            self.manager.unregister(plugin)
            raise PluginError(" ".join(str(error).split())) from error
        for spec, offers in offered.items():
            self.offers[spec] += offers
        self.plugins.append((name, provider))


def _call(plugin: Any, hook: str) -> Iterable[Any]:
    function = getattr(plugin, hook, None)
    if not callable(function):
        return ()
    # One plugin at a time, not through the manager: the offer must be traced to its provider.
    offered = function()
    if not isinstance(offered, Iterable) or isinstance(offered, str):
        raise PluginError(f"{hook} must return a list, got {offered!r}")
    return offered


def _offer(item: Any, kind: type[AnySpec], provider: Provider, plugin: Any) -> Offer[AnySpec]:
    if kind is MethodSpec and not isinstance(item, MethodSpec):
        return offer_class(item, provider)
    if not isinstance(item, kind):
        raise PluginError(f"offered {item!r}, which is no {kind.__name__}")
    module, _, name = item.target.partition(":")
    if provider.version == LOCAL and module == Path(provider.distribution).stem:
        # The file itself, which is imported under a name that no other file has.
        item = replace(item, target=f"{plugin.__name__}:{name}")
    return Offer(item, provider)


def offer_class(item: Any, provider: Provider) -> Offer[Any]:
    """The offer of a ``Method`` class that a plugin gives itself. Raises ``PluginError`` for anything else."""
    if isinstance(item, type) and callable(getattr(item, "setup", None)):
        name = item.__dict__.get("name", item.__name__.lower())
        return Offer(MethodSpec(name, f"{item.__module__}:{item.__qualname__}"), provider, loaded=item)
    raise PluginError(f"offered {item!r}, which is neither a MethodSpec nor a Method class")


def _method_classes(module: ModuleType) -> list[type]:
    # A local file without hooks means its Method classes: a loss in twenty lines needs no more.
    from kdbench.method import Method

    return [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
    ]


def _check_hooks(manager: pluggy.PluginManager, plugin: Any) -> None:
    known = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("kdbench_")}
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is None:
            continue
        if name not in known:
            raise PluginError(f"implements '{name}', an unknown hook{did_you_mean(name, known)}")
        # Implementations are called one by one, to attribute errors to their plugin: there is nothing to wrap.
        if options["wrapper"] or options["hookwrapper"]:
            raise PluginError(f"hook '{name}' is a wrapper, which kdbench does not call; make it a plain hookimpl")
        offered = inspect.signature(known[name]).parameters
        if "run" in offered and inspect.isgeneratorfunction(getattr(plugin, name)):
            raise PluginError(f"hook '{name}' contains a yield and would do nothing when called; remove it")
        for argument in inspect.signature(getattr(plugin, name)).parameters.values():
            if argument.default is argument.empty and argument.name not in offered:
                known_arguments = did_you_mean(argument.name, offered) or "; it has none"
                raise PluginError(f"hook '{name}' has no argument '{argument.name}'{known_arguments}")
