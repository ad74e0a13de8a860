"""The checks, in the order in which they are shown.

A check is a function of a :class:`~kdbench.testing.subject.Subject`. Its docstring is the question; it
returns a remark (or nothing) where the answer is yes, and raises ``CheckFailed`` or ``CheckSkipped`` with the
reason otherwise. Its name is the function's, with dashes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdbench.testing.checks import batches, contract, gradients, module, numbers, placement
from kdbench.testing.subject import Subject


@dataclass(frozen=True)
class Check:
    """A question to a method."""

    name: str
    question: str
    ask: Callable[[Subject], str | None]

    @classmethod
    def of(cls, function: Callable[[Subject], str | None]) -> Check:
        """From a function with its question as docstring."""
        name = getattr(function, "__name__", "")
        return cls(name.replace("_", "-"), (function.__doc__ or "").strip().splitlines()[0], function)


CHECKS = tuple(
    Check.of(function)
    for function in (
        contract.settings,
        contract.terms,
        contract.training,
        contract.labels,
        contract.predict,
        gradients.student_gradient,
        gradients.adapter_gradient,
        gradients.teacher_gradient,
        gradients.outputs_unchanged,
        numbers.zero_rows,
        numbers.duplicate_rows,
        numbers.one_image,
        numbers.huge_logits,
        numbers.tiny_logits,
        numbers.huge_features,
        numbers.tiny_features,
        numbers.fp16,
        numbers.bf16,
        batches.batch_order,
        batches.batch_growth,
        module.registered,
        module.round_trip,
        module.pickle,
        module.seed,
        module.state,
        placement.device,
        placement.host_sync,
    )
)
"""Every check."""
