"""What is measured of a student on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15


def collect(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All logits (N, C), in float32, and labels (N,) of a split."""
    logits, labels = [], []
    with torch.no_grad():
        for images, target in batches:
            logits.append(predict(images).float())
            labels.append(target)
    return torch.cat(logits), torch.cat(labels)


def measure(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """The metrics of a split, read from the device in one go.

    ``logits``, ``teacher_logits``: (N, C). Gives ``top1``, ``top5`` (with more than five classes) and
    ``agreement`` (same class as the teacher's) in percent, ``nll`` and ``kl_to_teacher``
    (KL(teacher ‖ student)) in nats, and the expected calibration error ``ece`` in 0..1 (15 bins; Guo 2017,
    https://arxiv.org/abs/1706.04599).
    """
    # Takes as long to import as torch itself, and a finished suite measures nothing.
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    classes = logits.shape[1]
    shares = {"top1": multiclass_accuracy(logits, labels, classes, average="micro", validate_args=False)}
    if classes > 5:
        top5 = logits.topk(5, dim=1).indices
        shares["top5"] = (top5 == labels[:, None]).any(1).float().mean()
    others = {
        "nll": F.cross_entropy(logits, labels),
        "ece": multiclass_calibration_error(
            logits.softmax(1), labels, classes, n_bins=CALIBRATION_BINS, validate_args=False
        ),
    }
    if teacher_logits is not None:
        shares["agreement"] = (logits.argmax(1) == teacher_logits.argmax(1)).float().mean()
        others["kl_to_teacher"] = F.kl_div(
            logits.log_softmax(1), teacher_logits.log_softmax(1), log_target=True, reduction="batchmean"
        )
    values = shares | others
    read = dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))
    # A share is a count of images: float32 gives 94.80000305 for 474 of 500, and equal means would differ.
    return read | {name: 100 * round(read[name] * len(labels)) / len(labels) for name in shares}
