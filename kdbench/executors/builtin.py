"""The built-in executors, registered through the same hook as those of plugins."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hookspecs import ExecutorSpec, hookimpl


@hookimpl
def kdbench_executors() -> Sequence[ExecutorSpec]:
    """The built-in executors."""
    return [
        ExecutorSpec("processes", "kdbench.executors.processes:Processes"),
        ExecutorSpec("ray", "kdbench.executors.ray:RayTasks", per_cohort=True),
    ]
