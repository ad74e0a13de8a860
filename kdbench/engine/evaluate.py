"""Evaluates a student on a split."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from kdbench.engine.device import in_float32
from kdbench.metrics import METRICS


def collect(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All logits (N, C), in float32, and labels (N,) of a split."""
    logits, labels = [], []
    with torch.no_grad():
        for images, target in batches:
            with in_float32(images.device):
                logits.append(predict(images).float())
            labels.append(target)
    return torch.cat(logits), torch.cat(labels)


def measure(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """The built-in metrics of a split (:data:`kdbench.metrics.METRICS`), read from the device in one transfer.

    ``logits``, ``teacher_logits``: (N, C), ``labels``: (N,). Without ``teacher_logits``, metrics that compare with
    the teacher are left out.
    """
    values: dict[str, Tensor] = {}
    for metric in METRICS.values():
        if metric.needs_teacher and teacher_logits is None:
            continue
        function = pkgutil.resolve_name(metric.target)
        value = function(logits, labels, teacher_logits) if metric.needs_teacher else function(logits, labels)
        if value is not None:
            values[metric.name] = value
    read = dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))
    shares = {name: percent(read[name], len(labels)) for name in read if METRICS[name].is_share}
    return read | shares


def classified(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest of each image's logits (N, C) is that of its label (N,): (N,) booleans on their device.

    Their share is the ``top1`` of :func:`measure`.
    """
    return logits.argmax(1) == labels


def percent(share: float, images: int) -> float:
    """A share of ``images`` in percent."""
    # Rounded to a count of images: float32 gives 94.80000305 for 474 of 500, so equal means would differ.
    return 100 * round(share * images) / images
