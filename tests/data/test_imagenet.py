from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdbench.data.base import DataFacts, FileSplit
from kdbench.data.imagenet import ImageNet
from kdbench.data.splits import limit
from kdbench.errors import DataError


@pytest.fixture
def root(folder: Path) -> Path:
    (folder / "test").rename(folder / "val")
    return folder


def test_facts_read_no_image(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    assert replace(ImageNet(root=str(root), size=64).facts(), content="") == DataFacts(
        classes=2,
        image_shape=(3, 64, 64),
        n_train=6,
        n_test=4,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def test_loads_names(root: Path) -> None:
    arrays = ImageNet(root=str(root), workers=3).load()
    assert isinstance(arrays.train, FileSplit)
    assert arrays.train.root == root
    assert arrays.train.files[:2] == ("train/cat/0.png", "train/cat/1.png")
    assert arrays.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert arrays.test.labels.tolist() == [0, 0, 1, 1]
    assert arrays.train.workers == 3
    assert arrays.class_names == ("cat", "dog")


def test_the_fingerprint_follows_names_sizes_and_pixels(root: Path, write_image: Callable[..., np.ndarray]) -> None:
    write_image(root / "train" / "cat" / "4.bmp", seed=4)
    fingerprints = {ImageNet(root=str(root)).load().fingerprint}
    write_image(root / "train" / "cat" / "4.bmp", seed=5)
    fingerprints.add(ImageNet(root=str(root)).load().fingerprint)
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "9.png")
    fingerprints.add(ImageNet(root=str(root)).load().fingerprint)
    with (root / "train" / "cat" / "9.png").open("ab") as file:
        file.write(b"x")
    fingerprints.add(ImageNet(root=str(root)).load().fingerprint)
    assert len(fingerprints) == 4


def test_files_can_be_cut_like_arrays(root: Path) -> None:
    arrays = limit(ImageNet(root=str(root)).load(), validation=2, test_limit=2)
    assert isinstance(arrays.train, FileSplit)
    assert isinstance(arrays.validation, FileSplit)
    assert sorted(arrays.train.files + arrays.validation.files) == [
        f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)
    ]
    assert arrays.validation.labels.tolist() == [0, 1]
    for file, label in zip(arrays.train.files, arrays.train.labels, strict=True):
        assert file.startswith(f"train/{('cat', 'dog')[label]}/")


def test_wrong_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root: .*: no such folder; set it to the folder that contains train/"):
        ImageNet(root=str(tmp_path / "typo")).facts()
