"""What all tests share."""

from __future__ import annotations

import importlib
import json
import linecache
import os
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

# Tests run side by side: threads of one would wait for those of another. Before torch is imported, and for the
# processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a test asks for two threads, one that waits leaves its core to other tests.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import pytest
import torch

Install = Callable[..., Path]


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: some tests wait for servers, leases and processes that they start."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave the user's cache folder alone; one that needs an empty cache sets another folder."""
    os.environ["KDBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Relative difference to an independent computation that is put down to rounding."""


@pytest.fixture
def tolerance() -> dict[torch.dtype, float]:
    return TOLERANCE


@pytest.fixture(scope="session")
def strangers_shell(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, str]]:
    """Makes the environment variables of somebody who has installed kdbench in an environment of their own.

    What is installed there is seen there alone. The packages of the environment that runs the tests are seen,
    too, so that torch is not installed twice.
    """

    def make() -> dict[str, str]:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, with_pip=False)
        [packages] = folder.glob("lib/python*/site-packages")
        # Not a bare path: the .pth files there must be read, too, as where kdbench is installed in editable mode.
        outer = sysconfig.get_paths()["purelib"]
        (packages / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
        for command in ("kdbench", "pip", "pytest"):
            script = folder / "bin" / command
            script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {command} "$@"\n')
            script.chmod(0o755)
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_ADDOPTS", "MLFLOW_TRACKING_URI"}
        return {
            **{key: value for key, value in os.environ.items() if key not in hidden},
            "PATH": f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            # Everything that is needed stands in the outer environment; nothing is fetched.
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    return make


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts made-up distributions on the path; what they import is forgotten afterwards."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("KDBENCH_STRICT_PLUGINS", raising=False)
    before = set(sys.modules)
    path = list(sys.path)

    def make(
        distribution: str,
        source: str,
        *,
        version: str = "1.0",
        module: str = "",
        entry: str = "plugin",
        target: str = "",
        editable: bool = False,
    ) -> Path:
        module = module or distribution.replace("-", "_")
        file = site / f"{module}.py"
        file.write_text(dedent(source), encoding="utf-8")
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[kdbench]\n{entry} = {target or module}\n")
        if editable:
            (info / "direct_url.json").write_text(json.dumps({"url": "file:///x", "dir_info": {"editable": True}}))
        importlib.invalidate_caches()
        return file

    yield make
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def cell() -> Iterator[Callable[[str], dict[str, Any]]]:
    """Runs a notebook's cell and returns all names defined so far; its text is kept in linecache, as by IPython."""
    names: dict[str, Any] = {"__name__": "__main__"}
    files = []

    def run(text: str) -> dict[str, Any]:
        file = f"/tmp/ipykernel_1/{len(files)}.py"
        files.append(file)
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), names)
        return names

    yield run
    for file in files:
        linecache.cache.pop(file, None)


@pytest.fixture
def write(tmp_path: Path, install: Install) -> Callable[[str, str], Path]:
    """Writes a local file beside the installed ones."""

    def make(name: str, source: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(source), encoding="utf-8")
        return path

    return make
