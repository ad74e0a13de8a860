"""The functions behind :data:`kdbench.metrics.METRICS`: logits (N, C) and labels (N,) to a scalar."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15


def top1(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of images whose largest logit is the label's."""
    # Imported here: torchmetrics takes as long to import as torch, and a finished suite measures nothing.
    from torchmetrics.functional.classification import multiclass_accuracy

    return multiclass_accuracy(logits, labels, logits.shape[1], average="micro", validate_args=False)


def top5(logits: Tensor, labels: Tensor) -> Tensor | None:
    """The share of images whose label is among the five largest logits; None with five classes or fewer."""
    if logits.shape[1] <= 5:
        return None
    return (logits.topk(5, dim=1).indices == labels[:, None]).any(1).float().mean()


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of the labels, in nats."""
    return F.cross_entropy(logits, labels)


def ece(logits: Tensor, labels: Tensor) -> Tensor:
    """The expected calibration error in 0..1, over 15 bins (Guo 2017, https://arxiv.org/abs/1706.04599)."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error(
        logits.softmax(1), labels, logits.shape[1], n_bins=CALIBRATION_BINS, validate_args=False
    )


def agreement(logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """The share of images for which student and teacher predict the same class."""
    return (logits.argmax(1) == teacher_logits.argmax(1)).float().mean()


def kl_to_teacher(logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats, a mean over images."""
    return F.kl_div(logits.log_softmax(1), teacher_logits.log_softmax(1), log_target=True, reduction="batchmean")
