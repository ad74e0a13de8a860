"""Small folders of generated images in the layouts that the shipped suites expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_noise(path: Path, size: tuple[int, int], stream: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stream.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """ImageNet's layout: 2 classes, 3 training and 1 validation image each, of many sizes."""
    stream = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for wnid in ("n01440764", "n01443537"):
            for number in range(count):
                write_noise(tmp_path / "imagenet" / split / wnid / f"{number}.JPEG", (40 + 5 * number, 52), stream)
    return tmp_path / "imagenet"


@pytest.fixture
def tiny_photographs(tmp_path: Path) -> Path:
    """Tiny ImageNet's layout: 2 classes of 64x64 images, 2 to train and 1 to validate on each."""
    root, stream = tmp_path / "tiny-imagenet-200", np.random.default_rng(0)
    wnids = ("n01443537", "n01629819")
    annotations = []
    for number, wnid in enumerate(wnids):
        for image in range(2):
            write_noise(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", (64, 64), stream)
        write_noise(root / "val" / "images" / f"val_{number}.JPEG", (64, 64), stream)
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t10\t10\n")
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    return root
