"""The loss terms that a method returns: their weighted sum, and their means over an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import TrialError


def weigh(terms: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The terms' values by name, and the loss: the sum of value * weight. All are scalars.

    Raises :class:`~kdbench.errors.TrialError` for anything but named scalar tensors with weights.
    """
    if not isinstance(terms, Mapping) or not terms:
        raise TrialError(f"forward must return named terms, got {type(terms).__name__}")
    values: dict[str, Tensor] = {}
    loss = None
    named = {str.__str__(name) if isinstance(name, str) else name: term for name, term in terms.items()}
    for name, term in named.items():
        if not isinstance(name, str):
            raise TrialError(f"forward must name its terms by strings, got a name of type {type(name).__name__}")
        if not (isinstance(term, tuple) and len(term) == 2 and isinstance(term[0], Tensor)):
            raise TrialError(f"term '{name}' must be a pair (value, weight), got {type(term).__name__}")
        value, weight = term
        if value.ndim:
            raise TrialError(f"term '{name}' must be a scalar, got shape {tuple(value.shape)}")
        values[name] = value
        loss = value * weight if loss is None else loss + value * weight
    assert loss is not None
    return values, loss


class Means:
    """Means of the loss and of its terms over the images of an epoch, summed on the device."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._images = 0

    def check(self, names: tuple[str, ...]) -> None:
        """Raise :class:`~kdbench.errors.TrialError` if the terms differ from those of the epoch's first step."""
        if self._sums is not None and names != self._names:
            raise TrialError(f"terms changed within an epoch from {list(self._names)} to {list(names)}")

    def add(self, loss: Tensor, values: dict[str, Tensor], images: int) -> None:
        """Add a step's loss and terms, which are means over ``images``. Does not wait for the device."""
        read = torch.stack([value.detach().double() for value in (loss, *values.values())]) * images
        self._names = tuple(values)
        self._sums = read if self._sums is None else self._sums + read
        self._images += images

    def read(self) -> tuple[float, dict[str, float]]:
        """The mean loss, and the mean of each term; waits for the device."""
        assert self._sums is not None
        loss, *values = (self._sums / self._images).tolist()
        return loss, dict(zip(self._names, values, strict=True))
