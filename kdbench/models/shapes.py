"""Fast computation of the shapes of networks and adapters, for plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdbench.method import Signature
from kdbench.models.base import TappedModel, signature

_DRAWS_IN_PLACE = frozenset(
    {
        Tensor.bernoulli_,
        Tensor.cauchy_,
        Tensor.exponential_,
        Tensor.geometric_,
        Tensor.log_normal_,
        Tensor.normal_,
        Tensor.random_,
        Tensor.uniform_,
    }
)
# Functions that draw a random tensor, and replacements with the same shape that draw nothing.
_DRAWS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.rand: torch.empty,
    torch.randn: torch.empty,
    torch.rand_like: torch.empty_like,
    torch.randn_like: torch.empty_like,
}


class _WithoutDraws(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWS_IN_PLACE:
            return args[0]
        if func in _DRAWS:
            kwargs.pop("generator", None)
            return _DRAWS[func](*args, **kwargs)
        return func(*args, **kwargs)


def without_draws() -> AbstractContextManager[Any]:
    """Context in which random initialisation is skipped: weights are uninitialised memory."""
    return _WithoutDraws()


@contextmanager
def on_meta() -> Iterator[None]:
    """Context in which tensors are created on the meta device, without memory and without random draws."""
    with torch.device("meta"), _WithoutDraws():
        yield


def planned_signature(build: Callable[[], TappedModel], name: str, image_shape: tuple[int, int, int]) -> Signature:
    """The signature of a network for a plan; its tensors are on the meta device.

    The network runs on the CPU, for two images: on the meta device torch computes convolutions and batch
    normalisation in Python and imports its compiler, which takes longer than the rest of a plan.
    """
    with without_draws():
        known = signature(build(), name, image_shape)
    taps = {tap: replace(shape, batch_norm=_to_meta(shape.batch_norm)) for tap, shape in known.taps.items()}
    weight = known.classifier_weight
    return replace(known, taps=taps, classifier_weight=weight.to("meta") if weight is not None else None)


def _to_meta(scale_and_shift: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    if scale_and_shift is None:
        return None
    scale, shift = scale_and_shift
    return scale.to("meta"), shift.to("meta")
