"""A trained teacher with frozen weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.engine.device import Precision
from kdbench.engine.outputs import at_least_float32
from kdbench.method import Signature
from kdbench.models.base import TappedModel
from kdbench.results import TeacherUsed


@dataclass
class FrozenTeacher:
    """A network in eval mode, with its signature and its entry in the results."""

    network: TappedModel
    signature: Signature
    used: TeacherUsed
    """The teacher's entry in the results."""
    foreign: bool = True
    """Whether the network comes from a third-party plugin."""

    def __call__(self, images: Tensor, reads: Sequence[str], precision: Precision) -> dict[str, Tensor]:
        """Its outputs for a batch, without gradients, in float32."""
        with torch.no_grad(), precision.autocast():
            raw = self.network(images, reads)
        return {name: at_least_float32(value) for name, value in raw.items()}
