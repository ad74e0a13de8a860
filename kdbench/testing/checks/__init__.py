"""The checks, in display order.

A check is a function of a :class:`~kdbench.testing.subject.Subject` (a method on a pair of networks) or of a
:class:`~kdbench.testing.network.NetworkSubject` (a model at an image size). Its docstring is the question; it
returns a remark (or None) if the answer is yes, otherwise it raises ``CheckFailed`` or ``CheckSkipped`` with the
reason. Its name is that of the function, with dashes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kdbench.testing.checks import batches, capture, contract, gradients, module, networks, numbers, placement
from kdbench.testing.network import NetworkSubject
from kdbench.testing.subject import Subject

S = TypeVar("S")


@dataclass(frozen=True)
class Check(Generic[S]):
    """A check of a method or a model."""

    name: str
    question: str
    ask: Callable[[S], str | None]
    everywhere: bool = True
    """Whether it is asked at each place, not only at the first."""

    @classmethod
    def of(cls, function: Callable[[S], str | None]) -> Check[S]:
        """Make a check from a function with the question as docstring."""
        name = getattr(function, "__name__", "")
        question = (function.__doc__ or "").strip().splitlines()[0]
        return cls(name.replace("_", "-"), question, function, everywhere=function not in AT_ONE_PLACE)


# It trains, and what it asks hardly depends on the networks.
AT_ONE_PLACE: tuple[Callable[..., object], ...] = (capture.capturable,)

CHECKS: tuple[Check[Subject], ...] = tuple(
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
        capture.capturable,
    )
)
"""Every check of a method."""

MODEL_CHECKS: tuple[Check[NetworkSubject], ...] = tuple(
    Check.of(function)
    for function in (
        networks.contract,
        networks.device,
        networks.reads,
        networks.tap_order,
        networks.signs,
        networks.in_place,
        networks.batch_sizes,
        networks.classifier,
        networks.gradient,
        networks.images_unchanged,
        networks.deterministic,
        networks.round_trip,
        networks.seed,
        networks.global_state,
    )
)
"""Every check of a model. If the first one fails, the others do not run."""
