"""``kdbench new-method``: creates a package for a loss, with its tests and a suite."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import kdbench
from kdbench.discovery import Registry
from kdbench.errors import KdbenchError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

# Template, and where its text goes in the new distribution.
_FILES = {
    "pyproject.toml.j2": "pyproject.toml",
    "readme.md.j2": "README.md",
    "gitignore.j2": ".gitignore",
    "plugin.py.j2": "src/{package}/__init__.py",
    "loss.py.j2": "src/{package}/loss.py",
    "test_loss.py.j2": "tests/test_{module}.py",
    "suite.toml.j2": "suites/{name}.toml",
}


class ScaffoldError(KdbenchError):
    """A name that is not valid or already used, or a folder that is not empty."""


@dataclass(frozen=True)
class Names:
    """The names of the parts of a method's package."""

    name: str
    """The method's name in suites: ``my-loss``."""

    @property
    def distribution(self) -> str:
        """The package's distribution name: ``kdbench-my-loss``."""
        return f"kdbench-{self.name}"

    @property
    def module(self) -> str:
        """The name with underscores: ``my_loss``."""
        return self.name.replace("-", "_")

    @property
    def package(self) -> str:
        """The import package: ``kdbench_my_loss``."""
        return f"kdbench_{self.module}"

    @property
    def class_name(self) -> str:
        """The class: ``MyLoss``."""
        return "".join(part.capitalize() for part in self.name.split("-"))

    @property
    def function(self) -> str:
        """The pure function: ``my_loss`` (``focus_loss`` for ``focus``)."""
        return self.module if self.module.endswith("loss") else f"{self.module}_loss"


def check_name(name: str, registry: Registry) -> Names:
    """The names derived from ``name``.

    Raises:
        ScaffoldError: it is not a lower-case name with dashes, or an installed method or package has this name.
    """
    if not _NAME.fullmatch(name):
        raise ScaffoldError(
            f"'{name}' is not a valid name: use lower-case letters, digits and single dashes, "
            "starting with a letter, as in 'my-loss'"
        )
    names = Names(name)
    if keyword.iskeyword(names.class_name):
        raise ScaffoldError(f"'{name}' is not a valid name: its class would be called {names.class_name}")
    for offer in registry.methods:
        if offer.spec.name == name:
            raise ScaffoldError(f"'{name}' is already a method of {offer.provider}; choose another name")
    if importlib.util.find_spec(names.package) is not None:
        raise ScaffoldError(
            f"'{name}' needs a package {names.package}, which is already installed; choose another name"
        )
    return names


def create(names: Names, directory: Path) -> list[Path]:
    """Write the package into ``directory`` and return the files written.

    Raises:
        ScaffoldError: the directory exists and is not empty, or cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ScaffoldError(
            f"{directory}: already exists and is not overwritten; choose another folder with --directory"
        )
    environment = Environment(
        loader=PackageLoader("kdbench.scaffold"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    written = []
    for template, place in _FILES.items():
        text = environment.get_template(template).render(names=names, kdbench_version=kdbench.__version__)
        path = directory / place.format(package=names.package, module=names.module, name=names.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ScaffoldError(f"{path}: cannot be written: {error.strerror or error}") from error
        written.append(path)
    return written
