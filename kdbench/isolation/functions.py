"""Functions and classes that training relies on: finds and restores those that a plugin replaced."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from kdbench.isolation.aspects import SLOW_ASPECTS, in_main_thread, restore

_GUARDED = ("kdbench", "kdbench_methods", "torch.nn.modules", "torch.autograd", "torch.amp")
"""Packages whose modules are looked at, and that of each plugin."""
_MODULES = (
    "builtins",
    "math",
    "random",
    "numpy.random",
    "torch",
    "torch._tensor",
    "torch.linalg",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.optim.optimizer",
    "torch.optim.sgd",
    "torch.optim.adam",
    "torch.optim.adamw",
    "torch.random",
)
_FUNCTIONS = (
    *(FunctionType, BuiltinFunctionType, MethodType, type, staticmethod, classmethod, property),
    *(torch.jit.ScriptFunction, type(np.random.rand)),
)
_TORCH = str(Path(torch.__file__).parent)
_NO_CODE = (lambda: None).__code__


class Originals:
    """The functions and classes that training relies on, as they are when this is made.

    Those of torch, of kdbench, and of the modules named in ``plugins``. What torch itself wraps is accepted: an
    optimiser's ``step`` at its first instance, some functions for ``torch.compile``.
    """

    def __init__(self, plugins: Iterable[str] = ()) -> None:
        names = {*_MODULES, *plugins}
        if not in_main_thread():
            # Cells of a notebook may define functions there while a training runs in another thread.
            names.discard("__main__")
        modules = [
            module
            for name, module in sys.modules.copy().items()
            if name in names or name.startswith(tuple(f"{package}." for package in _GUARDED)) or name in _GUARDED
        ]
        owners: dict[int, ModuleType | type] = {id(module): module for module in modules}
        for module in modules:
            classes = [value for value in vars(module).values() if isinstance(value, type)]
            owners |= {id(cls): cls for cls in classes if cls.__module__ in {module.__name__, "torch"}}
        self._known: list[tuple[Any, list[str], list[Any], int]] = []
        for owner in owners.values():
            items = {name: value for name, value in vars(owner).items() if isinstance(value, _FUNCTIONS)}
            self._known.append((owner, list(items), list(items.values()), len(vars(owner))))
        self._slow = [aspect.read() for aspect in SLOW_ASPECTS]

    def undo(self) -> list[str]:
        """Restore what was replaced, and return its names; also rarer kinds of global state."""
        changed = []
        for position, (owner, names, values, size) in enumerate(self._known):
            now = vars(owner)
            if len(now) != size:
                changed += _remove_shadows(owner, names)
                self._known[position] = (owner, names, values, len(now))
            if list(map(now.get, names)) == values:
                continue
            for number, (name, value) in enumerate(zip(names, values, strict=True)):
                new = now.get(name)
                if new is value:
                    continue
                if _is_torchs_own(owner, name, new):
                    values[number] = new
                    continue
                setattr(owner, name, value)
                changed.append(f"{_path(owner)}.{name}")
        now = [aspect.read() for aspect in SLOW_ASPECTS]
        if now != self._slow:
            changed += restore(SLOW_ASPECTS, self._slow, now)
        return changed


def _remove_shadows(owner: ModuleType | type, names: Iterable[str]) -> list[str]:
    """Functions added to a class in front of those that it inherits."""
    if not isinstance(owner, type):
        return []
    known = set(names)
    added = [name for name, value in vars(owner).items() if isinstance(value, _FUNCTIONS) and name not in known]
    inherited = [name for name in added if any(name in vars(base) for base in owner.__mro__[1:])]
    shadows = [name for name in inherited if not _is_torchs_own(owner, name, vars(owner)[name])]
    for name in shadows:
        delattr(owner, name)
    return [f"{_path(owner)}.{name}" for name in shadows]


def _is_torchs_own(owner: ModuleType | type, name: str, value: Any) -> bool:
    """Whether torch wrapped a function of its own, as it does for ``torch.compile`` and in optimisers."""
    if not _path(owner).startswith("torch") or not isinstance(value, FunctionType):
        return False
    if value.__name__ != name and not value.__code__.co_filename.startswith(f"{_TORCH}/_dynamo"):
        return False
    inner = inspect.unwrap(value)
    return all(getattr(f, "__code__", _NO_CODE).co_filename.startswith(_TORCH) for f in (value, inner))


def _path(owner: ModuleType | type) -> str:
    return f"{owner.__module__}.{owner.__qualname__}" if isinstance(owner, type) else owner.__name__
