"""A metric."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """The Brier score: the mean squared distance of the probabilities from the labels, 0 to 2."""
    distance = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    return distance.square().sum(1).mean()
