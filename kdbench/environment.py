"""What a result was computed with."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from typing import Any

import kdbench


def describe_environment() -> dict[str, Any]:
    """Versions, machine, and the git commit of the working folder where there is one."""
    return {
        "kdbench": kdbench.__version__,
        "torch": importlib.metadata.version("torch"),
        "torchvision": importlib.metadata.version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
