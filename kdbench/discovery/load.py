"""Loads plugins: built-in, installed and local ones. A broken plugin does not affect others."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pluggy

import kdbench
from kdbench import hookspecs
from kdbench.discovery.cells import check_current, read_cell
from kdbench.discovery.offer import LOCAL, Broken, Provider, contained, explained
from kdbench.discovery.registry import Registry, offer_class
from kdbench.discovery.sources import FIRST_PARTY, sources
from kdbench.errors import PluginError
from kdbench.words import shown

GROUP = "kdbench"
BUILT_IN = (
    "kdbench.models.builtin",
    "kdbench.data.builtin",
    "kdbench.engine.builtin",
    "kdbench.report.builtin",
    "kdbench.executors.builtin",
)
LOCAL_MODULE = "kdbench_local_"
"""Begins the names under which local files are imported."""

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
        broken = Broken(name, provider, f"{action}: {explained(error)}")
        if os.environ.get("KDBENCH_STRICT_PLUGINS") == "1" or provider.version == LOCAL:
            raise PluginError(f"plugin {broken}") from error
        registry.broken.append(broken)


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
    offer = offer_class(cls, provider)
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
