"""Named random streams: every use of random numbers has a separate seed.

A stream is named by the trial's seed and its purpose (data order, augmentation, student initialisation ..),
so that one more method in a cohort, or a run resumed in the middle, changes no other numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for a purpose: the same arguments always give the same one, on every machine."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *purpose: object) -> torch.Generator:
    """A torch generator on ``device`` for a purpose."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))
