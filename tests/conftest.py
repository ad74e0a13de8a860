"""What all tests share."""

from __future__ import annotations

import os
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

# Tests run side by side: threads of one would wait for those of another. Before torch is imported, and for the
# processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

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
