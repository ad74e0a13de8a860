"""Connects plan, engine and observers. ``run_suite`` is the Python API."""

from kdbench.opening import Opened, open_suite
from kdbench.run.api import run_suite
from kdbench.run.outcome import Results

__all__ = ["Opened", "Results", "open_suite", "run_suite"]
