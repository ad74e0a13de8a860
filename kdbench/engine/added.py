"""The metrics that a suite adds. They are measured for each student, and a failing metric never stops a training.

If a plugin's metric fails, the student's training continues without its value. The reason is in the records
(``unmeasured``), in a warning, and below the report's table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from kdbench.discovery import Offer
from kdbench.engine.device import responds
from kdbench.engine.evaluate import percent
from kdbench.errors import KdbenchError, TrialError, in_words
from kdbench.hookspecs import MetricSpec
from kdbench.words import one_line


class Attempt(Protocol):
    """Runs plugin code and undoes the changes that it left in the process; returns the error, if any."""

    def __call__(self, action: Callable[[], object], who: str, *, thorough: bool) -> BaseException | None:
        """``thorough`` also looks for replaced functions."""


@dataclass
class Measured:
    """By metric: the values of a student, and the reasons for missing values."""

    values: dict[str, float] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)


class AddedMetrics:
    """Measures the metrics that a suite adds."""

    def __init__(self, offers: Sequence[Offer[MetricSpec]] = (), warn: Callable[[str], None] = lambda _: None) -> None:
        """``warn`` gets each failure once. Raises ``PluginError`` if a metric cannot be imported."""
        self._metrics = [(offer.spec, offer.load(), str(offer.provider)) for offer in offers]
        self._warn = warn
        self._warned: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        """The number of metrics."""
        return len(self._metrics)

    @property
    def specs(self) -> dict[str, MetricSpec]:
        """The metrics by name."""
        return {spec.name: spec for spec, _, _ in self._metrics}

    @property
    def modules(self) -> set[str]:
        """The modules that define the metrics."""
        return {spec.target.partition(":")[0] for spec, _, _ in self._metrics}

    def measure(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        *,
        attempt: Attempt,
        seed: Callable[[str], None],
    ) -> Measured:
        """Measure a student on a split: ``logits`` and ``teacher_logits`` (N, C), ``labels`` (N,).

        ``seed`` seeds the process's random generators for a metric's name. Each metric gets copies of the tensors.
        Without ``teacher_logits``, metrics that need them are left out.

        Raises:
            KdbenchError: the device stopped working during a metric.
        """
        found = Measured()
        for spec, function, provider in self._metrics:
            if spec.needs_teacher and teacher_logits is None:
                continue
            given = (logits, labels, teacher_logits) if spec.needs_teacher else (logits, labels)
            seed(spec.name)
            error = attempt(lambda: _take(spec, function, given, found.values), "it", thorough=True)  # noqa: B023
            if error is None:
                continue
            found.values.pop(spec.name, None)
            found.unmeasured[spec.name] = what = one_line(in_words(error))
            who = f"metric '{spec.name}' of {provider}"
            if isinstance(error, torch.AcceleratorError) and not responds(logits.device):
                raise KdbenchError(
                    f"{logits.device} stopped working in {who}: {what}; saved results are safe: run again without it"
                ) from error
            if (spec.name, what) not in self._warned:
                self._warned.add((spec.name, what))
                self._warn(f"{who}: {what}; the trainings continue, and the report shows a dash for its value")
        return found


def _take(
    spec: MetricSpec, function: Callable[..., Any], given: Sequence[Tensor | None], values: dict[str, float]
) -> None:
    with torch.no_grad():
        result = function(*(tensor.clone() for tensor in given if tensor is not None), **spec.presets)
    if result is None:
        return
    is_tensor = isinstance(result, Tensor) and result.ndim == 0 and not result.is_complex()
    if not (is_tensor or isinstance(result, Real)):
        got = f"{result.dtype} of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise TrialError(f"must return a scalar tensor, got {got}")
    value = float(result)
    if spec.is_share and value == value:
        value = percent(value, len(given[0]))  # type: ignore[arg-type] # the logits are always there
    if value < spec.low or value > spec.high:
        raise TrialError(f"must be between {spec.low:g} and {spec.high:g}, got {value:g}")
    values[spec.name] = value
