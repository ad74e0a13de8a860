"""Small image data sets, written by the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KDBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def write_image() -> Callable[..., np.ndarray]:
    """Write an image of noise and return its pixels (H, W, 3). PNG unless the name says otherwise."""

    def write(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return pixels

    return write


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable[..., np.ndarray]) -> Path:
    """An image folder: classes ``cat`` and ``dog``, 3 training and 2 test images each, 8x8 pixels."""
    root = tmp_path / "pets"
    seed = 0
    for split, count in (("train", 3), ("test", 2)):
        for name in ("dog", "cat"):
            for number in range(count):
                write_image(root / split / name / f"{number}.png", seed=seed)
                seed += 1
    return root
