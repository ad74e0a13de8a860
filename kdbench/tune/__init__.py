"""Tuning with one budget for all methods: the same number of configurations, each trained as the suite says."""

from kdbench.tune.loop import tune_suite
from kdbench.tune.outcome import Row, Tuned

__all__ = ["Row", "Tuned", "tune_suite"]
