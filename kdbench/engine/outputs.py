"""What a method sees of a network: the taps that it reads, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdbench.method import Output


def outputs(raw: Mapping[str, Tensor], reads: Sequence[str]) -> Output:
    """``logits`` and the taps ``reads`` of ``raw``, in float32 (or better) whatever the network's precision."""
    return Output(at_least_float32(raw["logits"]), {name: at_least_float32(raw[name]) for name in reads})


def at_least_float32(value: Tensor) -> Tensor:
    """``value`` in float32 where it is less."""
    return value.float() if value.dtype in {torch.float16, torch.bfloat16} else value


def private(output: Output) -> Output:
    """A copy that nobody else sees."""
    return Output(output.logits.clone(), {name: value.clone() for name, value in output.taps.items()})


def detached(output: Output) -> Output:
    """The same values, which record no gradients."""
    return Output(output.logits.detach(), {name: value.detach() for name, value in output.taps.items()})
