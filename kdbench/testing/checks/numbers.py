"""Are the loss and its gradients finite for inputs at which published losses fail?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.testing.bench import LOGITS, Change, Inputs, unchanged
from kdbench.testing.subject import CheckFailed, Subject

SANE = 1e5
"""A gradient larger than this multiple of the largest on ordinary outputs counts as infinite."""


def zero_rows(subject: Subject) -> str | None:
    """Are loss and gradients finite and of usual size if an image's features are all zero (dead ReLUs)?"""
    finite(subject, subject.bench.made_up(change=_one_zero_row), _ordinary(subject))
    finite(subject, subject.bench.made_up(change=_all_zero))
    return None


def duplicate_rows(subject: Subject) -> str | None:
    """Are loss and gradients finite and of usual size if two images have the same features?"""
    finite(subject, subject.bench.made_up(change=_duplicate_row), _ordinary(subject))
    finite(subject, subject.bench.made_up(change=_identical_rows))
    return None


def one_image(subject: Subject) -> str | None:
    """Are loss and gradients finite for a batch of one image?"""
    finite(subject, subject.bench.made_up(1))
    return None


def huge_logits(subject: Subject) -> str | None:
    """Are loss and gradients finite for logits of the order of 10,000?"""
    finite(subject, subject.bench.made_up(change=lambda tap, x: x * 1e4 if tap in LOGITS else x))
    return None


def tiny_logits(subject: Subject) -> str | None:
    """Are loss and gradients finite for logits of the order of 1e-8?"""
    finite(subject, subject.bench.made_up(change=lambda tap, x: x * 1e-8 if tap in LOGITS else x))
    return None


def huge_features(subject: Subject) -> str | None:
    """Are loss and gradients finite for features of the order of 10,000?"""
    finite(subject, subject.bench.made_up(change=lambda tap, x: x if tap in LOGITS else x * 1e4))
    return None


def tiny_features(subject: Subject) -> str | None:
    """Are loss and gradients finite for features of the order of 1e-8?"""
    finite(subject, subject.bench.made_up(change=lambda tap, x: x if tap in LOGITS else x * 1e-8))
    return None


def fp16(subject: Subject) -> str | None:
    """Are loss and gradients finite for outputs of networks that run under float16 autocast?"""
    _low_precision(subject, torch.float16)
    return None


def bf16(subject: Subject) -> str | None:
    """Are loss and gradients finite for outputs of networks that run under bfloat16 autocast?"""
    _low_precision(subject, torch.bfloat16)
    return None


def _low_precision(subject: Subject, dtype: torch.dtype) -> None:
    finite(subject, subject.bench.real(dtype))
    for change in (unchanged, _one_zero_row, _duplicate_row):
        finite(subject, subject.bench.made_up(change=_rounded(change, dtype)))


def _rounded(change: Change, dtype: torch.dtype) -> Change:
    return lambda tap, values: change(tap, values).to(dtype)


def _one_zero_row(tap: str, values: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(values[:1]), values[1:]])


def _all_zero(tap: str, values: Tensor) -> Tensor:
    return torch.zeros_like(values)


def _duplicate_row(tap: str, values: Tensor) -> Tensor:
    return torch.cat([values[1:2], values[1:]])


def _identical_rows(tap: str, values: Tensor) -> Tensor:
    return values[:1].expand_as(values).clone()


def _ordinary(subject: Subject) -> dict[str, float]:
    """The largest gradient of each stage on ordinary outputs."""
    return {
        step.stage: max((g.abs().max().item() for g in step.gradients().values() if g is not None), default=0.0)
        for step in subject.steps(subject.bench.made_up())
    }


def finite(subject: Subject, inputs: Inputs, ordinary: dict[str, float] | None = None) -> None:
    """Raise ``CheckFailed`` unless every stage's loss and gradients are finite.

    ``ordinary``: the largest gradient of each stage on ordinary outputs; much larger gradients also fail.
    """
    for step in subject.steps(inputs):
        loss = step.loss
        if not loss.isfinite():
            bad = {name: value.item() for name, (value, _) in step.terms.items() if not value.isfinite()}
            what = ", ".join(f"term '{name}' is {value}" for name, value in bad.items()) or f"the loss is {loss.item()}"
            raise CheckFailed(f"{step.stage}: {what}")
        if not loss.requires_grad:
            continue  # for example if the only term is zero; another check tests that a gradient reaches the student
        for name, gradient in step.gradients().items():
            if gradient is None:
                continue
            largest = gradient.abs().max().item()
            if not math.isfinite(largest):
                raise CheckFailed(f"{step.stage}: the gradient at {name} is not finite, though the loss is")
            limit = SANE * ordinary[step.stage] if ordinary else math.inf
            if largest > limit > 0:
                usual = limit / SANE
                raise CheckFailed(f"{step.stage}: the gradient at {name} reaches {largest:.1e}; usual is {usual:.1e}")
