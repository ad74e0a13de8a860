"""Counts the batches of batch normalisations in one operation a step, instead of one in each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NAME = "num_batches_tracked"


class _Tally:
    """Takes the place of a layer's counter during a step."""

    def __init__(self) -> None:
        self.calls = 0

    def add_(self, number: int) -> None:
        self.calls += number


class Counters:
    """The counters ``num_batches_tracked`` of all batch normalisations of some modules.

    Only layers with a momentum: the others read their counter at each step.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """``modules`` whose layers are counted; modules that they get later are not."""
        self._layers = [
            layer
            for layer in nn.ModuleList(modules).modules()
            if type(layer).forward is _BatchNorm.forward
            and layer._buffers.get(NAME) is not None
            and layer.momentum is not None
        ]

    @contextmanager
    def once(self) -> Iterator[None]:
        """Context of a step: within it the layers do not count; at its end, all counters are increased at once."""
        kept = [layer._buffers[NAME] for layer in self._layers]
        tallies = [_Tally() for _ in kept]
        for layer, tally in zip(self._layers, tallies, strict=True):
            layer._buffers[NAME] = cast(Tensor, tally)
        try:
            yield
        finally:
            for layer, counter in zip(self._layers, kept, strict=True):
                layer._buffers[NAME] = counter
        calls: dict[int, list[Tensor]] = {number: [] for number in Counter(tally.calls for tally in tallies) if number}
        for tally, counter in zip(tallies, kept, strict=True):
            if tally.calls and counter is not None:
                calls[tally.calls].append(counter)
        for number, counters in calls.items():
            torch._foreach_add_(counters, number)
