"""Pairs the maps of student and teacher, and brings them to the same size."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdbench.method import Incompatible, Signature, TapSignature


def pair_stages(
    student: Signature, teacher: Signature, who: str, read: str = "stage*", what: str = "stage maps"
) -> list[tuple[TapSignature, TapSignature]]:
    """(student's, teacher's) tap signature of each stage.

    ``who`` and ``what`` are used in messages: the method's name, and the taps that it needs.

    Raises:
        Incompatible: a network has no such taps, or the numbers of stages differ.
    """
    ours = student.require(read, who, what)
    theirs = teacher.require(read, who, what)
    if len(ours) != len(theirs):
        raise Incompatible(
            f"{who} pairs stages one to one; "
            f"teacher {teacher.model} has {len(theirs)}, student {student.model} has {len(ours)}"
        )
    return [(student.taps[s], teacher.taps[t]) for s, t in zip(ours, theirs, strict=True)]


def pool_to_smaller(
    a: Float[Tensor, "batch c h w"], b: Float[Tensor, "batch d k l"]
) -> tuple[Float[Tensor, "batch c m n"], Float[Tensor, "batch d m n"]]:
    """Both maps at the smaller size; the larger map is average-pooled."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return pool(a, size), pool(b, size)


def pool(x: Float[Tensor, "batch c h w"], size: tuple[int, int]) -> Float[Tensor, "batch c m n"]:
    """``x`` average-pooled to ``size``."""
    return x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size)
