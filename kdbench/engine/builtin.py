"""The built-in optimisers, schedules and metrics, registered through the same hooks as those of plugins."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hookspecs import MetricSpec, OptimizerSpec, ScheduleSpec, hookimpl
from kdbench.metrics import METRICS

_ADAMW = "Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019, https://arxiv.org/abs/1711.05101"
_COSINE = "Loshchilov and Hutter, SGDR, ICLR 2017, https://arxiv.org/abs/1608.03983"


@hookimpl
def kdbench_optimizers() -> Sequence[OptimizerSpec]:
    """The built-in optimisers."""
    return [
        # As in the code of RepDistiller and of most later work.
        OptimizerSpec("sgd", "kdbench.engine.optimizer:sgd", decays_all=True, capturable=True),
        OptimizerSpec("adamw", "kdbench.engine.optimizer:adamw", capturable=True, reference=_ADAMW),
    ]


@hookimpl
def kdbench_schedules() -> Sequence[ScheduleSpec]:
    """The built-in schedules."""
    return [
        ScheduleSpec("steps", "kdbench.engine.schedule:steps"),
        ScheduleSpec("cosine", "kdbench.engine.schedule:cosine", reference=_COSINE),
        ScheduleSpec("constant", "kdbench.engine.schedule:constant"),
    ]


@hookimpl
def kdbench_metrics() -> Sequence[MetricSpec]:
    """The built-in metrics; they are measured for every student."""
    return list(METRICS.values())
