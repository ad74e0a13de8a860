"""The network outputs that a method gets: the taps that it reads, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdbench.method import Output


def outputs(raw: Mapping[str, Tensor], reads: Sequence[str]) -> Output:
    """``logits`` and the taps ``reads`` of ``raw``, in float32 (or better) for any precision of the network."""
    return Output(at_least_float32(raw["logits"]), {name: at_least_float32(raw[name]) for name in reads})


def at_least_float32(value: Tensor) -> Tensor:
    """``value``, converted to float32 if its precision is lower."""
    return value.float() if value.dtype in {torch.float16, torch.bfloat16} else value


def private(output: Output) -> Output:
    """A copy that is not shared."""
    return Output(output.logits.clone(), {name: value.clone() for name, value in output.taps.items()})


def detached(output: Output) -> Output:
    """The same values without gradients."""
    return Output(output.logits.detach(), {name: value.detach() for name, value in output.taps.items()})
