"""The command that trains a plan's trials."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from kdbench.results.planned import PlanRecord
from kdbench.suite.load import shipped


def run_command(
    plan: PlanRecord,
    name: str,
    *,
    methods: Iterable[str] = (),
    pairs: Iterable[str] = (),
    seeds: Iterable[int] = (),
) -> str:
    """``kdbench run`` with the suite, overrides and plugins of a plan, quoted for a shell.

    ``name`` is used where the plan has no path.
    """
    options = [f"--method={shlex.quote(glob)}" for glob in methods]
    options += [f"--pair={shlex.quote(pair)}" for pair in pairs]
    options += [f"--seed={seed}" for seed in seeds]
    options += [f"--set={shlex.quote(override)}" for override in plan.overrides]
    options += [f"--plugin={shlex.quote(file)}" for file in plan.plugins]
    path = plan.path or name
    # A suite that ships with the package is called by its name, wherever it is stored.
    named = next((shipped_name for shipped_name, file in shipped().items() if str(file) == path), path)
    return " ".join(["kdbench run", shlex.quote(named), *options])
