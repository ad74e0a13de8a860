"""Discovers plugins and what they offer; a broken plugin does not affect others."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeAlias, TypeVar

import pluggy

import kdbench
from kdbench import hookspecs
from kdbench.cells import check_current, read_cell
from kdbench.errors import PluginError, did_you_mean, nearest, text_of
from kdbench.hookspecs import (
    KINDS,
    AugmentationSpec,
    DatasetSpec,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    ScheduleSpec,
    Spec,
)
from kdbench.settings import Facts, load_target, read_by_import, read_statically, source_of
from kdbench.sources import FIRST_PARTY, Source, read_source, recorded_hashes, sources
from kdbench.words import shown

GROUP = "kdbench"
BUILT_IN = ("kdbench.models.builtin", "kdbench.data.builtin", "kdbench.engine.builtin", "kdbench.report.builtin")
SUPPLIED: Mapping[type[Spec], tuple[str, ...]] = {
    ModelSpec: ("classes", "image_shape"),
    OptimizerSpec: ("lr", "weight_decay"),
    ScheduleSpec: ("epochs", "warmup_epochs", "lr"),
}
"""Keyword-only arguments that kdbench itself gives: they are no settings."""
LOCAL_MODULE = "kdbench_local_"
"""Begins the names under which local files are imported."""
ADAPTERS: Mapping[tuple[type[Spec], str], tuple[str, str]] = {
    (ModelSpec, "torchvision"): ("kdbench.models.torchvision:build", "name"),
    (ModelSpec, "timm"): ("kdbench.models.timm:build", "name"),
    (OptimizerSpec, "timm"): ("kdbench.engine.optimizer:timm_optimizer", "name"),
    (AugmentationSpec, "torchvision"): ("kdbench.data.augment:torchvision_transform", "transform"),
}
"""Libraries whose parts go by ``library:NAME``: the target, and its setting that takes NAME."""

LOCAL = "local"
"""The version of a local file."""

AnySpec = TypeVar("AnySpec", bound=Spec)


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
            raise PluginError(f"'{self.spec.name}' of {self.provider} failed to import: {_detail(error)}") from error

    @property
    def facts(self) -> Facts:
        """Settings, summary and literal attributes, without an import if they can be read from the source."""
        facts = read_by_import(self.loaded) if self.loaded is not None else read_statically(self.spec.target)
        facts = facts or read_by_import(self.load())
        settings = dict(facts.settings)
        for key, value in self.spec.presets.items():
            if key in settings:
                settings[key] = type(settings[key])(value, settings[key].type)
        return Facts(settings, self.spec.summary or facts.summary, facts.attributes)

    @property
    def reference(self) -> str:
        """The paper."""
        return self.spec.reference or str(self.facts.attributes.get("paper", ""))

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
        facts = self.facts
        row: dict[str, Any] = {
            "name": self.spec.name,
            "paper": self.reference,
            "summary": facts.summary,
            "distribution": self.provider.distribution,
            "version": self.provider.version,
            "settings": {
                key: value.to_json()
                for key, value in facts.settings.items()
                if key not in SUPPLIED.get(type(self.spec), ())
            },
        }
        if isinstance(self.spec, MethodSpec):
            reads = facts.attributes.get("reads", ("logits",))
            # A property's value depends on the settings.
            row["reads"] = sorted(reads) if isinstance(reads, Collection) else None
        return row


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded."""

    name: str
    provider: Provider
    problem: str

    def __str__(self) -> str:
        return f"{self.provider} {self.problem}"


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
        return _offer_class(item, provider)
    if not isinstance(item, kind):
        raise PluginError(f"offered {item!r}, which is no {kind.__name__}")
    module, _, name = item.target.partition(":")
    if provider.version == LOCAL and module == Path(provider.distribution).stem:
        # The file itself, which is imported under a name that no other file has.
        item = replace(item, target=f"{plugin.__name__}:{name}")
    return Offer(item, provider)


def _offer_class(item: Any, provider: Provider) -> Offer[Any]:
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


Local: TypeAlias = str | Path | type
"""A plugin that is named, not installed: a file, or a ``Method`` class."""


def discover(local: Iterable[Local] = ()) -> Registry:
    """Load the built-in plugins, all installed ones, and ``local`` files and ``Method`` classes.

    A broken plugin is remembered in ``Registry.broken``; with ``KDBENCH_STRICT_PLUGINS=1`` it is an error, and
    a broken local one always is, since it was asked for.
    """
    if isinstance(local, str | Path | type):
        raise PluginError(f"plugins: must be a list, got {shown(local)}")
    registry = built_in()
    seen = set()
    for entry in importlib.metadata.entry_points(group=GROUP):
        provider = _provider(entry)
        # A path that is on sys.path twice lists its distributions twice.
        if (provider.distribution, entry.name) in seen:
            continue
        seen.add((provider.distribution, entry.name))
        # The distribution is part of the name: two plugins with one entry-point name must not replace each other.
        name = f"{provider.distribution}:{entry.name}"
        _add_isolated(registry, name, provider, entry.load)
    for plugin in local:
        if isinstance(plugin, str | Path):
            add_file(registry, Path(plugin))
        else:
            add_class(registry, plugin)
    return registry


def built_in() -> Registry:
    """What comes with kdbench, without its methods."""
    manager = pluggy.PluginManager("kdbench")
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager)
    own = Provider(FIRST_PARTY, kdbench.__version__, hash_source=_is_editable(FIRST_PARTY))
    for name in BUILT_IN:
        registry.add(name, importlib.import_module(name), own)
    return registry


def _provider(entry: importlib.metadata.EntryPoint) -> Provider:
    # What an interrupted uninstallation left behind may have entry points, and no metadata.
    try:
        known = {"name": entry.dist.name, "version": entry.dist.version} if entry.dist else {}
    except (KeyError, FileNotFoundError):
        known = {}
    distribution = known.get("name") or entry.module
    hash_source = distribution != FIRST_PARTY or _is_editable(distribution)
    return Provider(distribution, known.get("version") or "(no version)", hash_source)


def _add_isolated(registry: Registry, name: str, provider: Provider, load: Any) -> None:
    action = "failed to import"
    try:
        with contained(provider):
            plugin = load()
            action = "failed to register"
            registry.add(name, plugin, provider)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may also raise SystemExit, GeneratorExit or its own
        broken = Broken(name, provider, f"{action}: {_detail(error)}")
        if os.environ.get("KDBENCH_STRICT_PLUGINS") == "1" or provider.version == LOCAL:
            raise PluginError(f"plugin {broken}") from error
        registry.broken.append(broken)


def _detail(error: BaseException) -> str:
    plain = isinstance(error, ImportError | PluginError)
    return text_of(error) if plain else f"{type(error).__name__}: {text_of(error)}".removesuffix(": ")


def contained(provider: Provider, module: str = "") -> AbstractContextManager[None]:
    """Around third-party code: it must not change global state."""
    # Where torch is not loaded nothing is trained, and plugins are listed without it.
    if provider.distribution == FIRST_PARTY or "torch" not in sys.modules or module in sys.modules:
        return nullcontext()
    from kdbench import isolation

    return isolation.contained(str(provider), isolation.Originals())


def add_file(registry: Registry, path: Path) -> None:
    """Load a local plugin file; ``PluginError`` where it is missing or broken."""
    if not os.path.isfile(path):  # unlike Path.is_file, it takes names that the system does not allow
        raise PluginError(f"plugin file {shown(str(path))[1:-1]}: not found")
    path = path.resolve()
    module_name = f"{LOCAL_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    # By its file's name in messages; by its whole path where another one of that name was there first.
    name = str(path) if registry.manager.has_plugin(path.name) else path.name
    if path in registry.files:
        return

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise PluginError("is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        # As for a script: it may import the files beside it. Last, so that they hide no installed package.
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        _check_helpers(path)
        spec.loader.exec_module(module)
        return module

    try:
        _add_isolated(registry, name, Provider(path.name, LOCAL, hash_source=True), load)
    except PluginError:
        sys.modules.pop(module_name, None)
        raise
    registry.files.add(path)


def add_class(registry: Registry, cls: type) -> None:
    """Offer a ``Method`` class of a notebook, a script or a module; ``PluginError`` for what is none."""
    from kdbench.method import Method

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise PluginError(f"plugins: must contain paths of files and Method classes, got {shown(cls)}")
    if any(offer.loaded is cls for offer in registry.methods):
        return
    module = sys.modules.get(cls.__module__)
    path = Path(getattr(module, "__file__", None) or "")
    # The script that runs is not identified as a whole: it names the suite, too.
    in_file = cls.__module__ != "__main__" and path.suffix == ".py"
    if in_file and module is not None:
        check_current(module)
    provider = Provider(path.name if in_file else cls.__module__, LOCAL, hash_source=True)
    offer = _offer_class(cls, provider)
    registry.methods.append(offer if in_file else replace(offer, code=read_cell(cls)))
    if all(name != provider.distribution for name, _ in registry.plugins):
        registry.plugins.append((provider.distribution, provider))


def _check_helpers(path: Path) -> None:
    """Refuse a local file that would import another local file's helper of the same name."""
    local = {Path(m.__file__ or "").parent for n, m in sys.modules.items() if n.startswith(LOCAL_MODULE)}
    helpers = {helper for helper in sources(path) if helper != path and path.parent in helper.parents}
    for name in sorted({helper.relative_to(path.parent).with_suffix("").parts[0] for helper in helpers}):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else path
        folder = found.parent.parent if found.name == "__init__.py" else found.parent
        if folder != path.parent and folder in local:
            raise PluginError(f"imports '{name}', which would load {found} of another local plugin; rename one of them")


def _is_editable(distribution: str) -> bool:
    try:
        text = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return True  # run from a source tree
    info: Mapping[str, Any] = json.loads(text) if text else {}
    return bool(info.get("dir_info", {}).get("editable", False))
