from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdbench.data.base import DataFacts, Split
from kdbench.data.tiny_imagenet import TinyImageNet
from kdbench.errors import DataError

WNIDS = ["n02", "n01", "n03"]


@pytest.fixture
def root(tmp_path: Path, write_image: Callable[..., np.ndarray]) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for number in range(2):
            write_image(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", seed=10 * label + number)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for number, wnid in enumerate(["n03", "n02", "n01", "n03"]):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", seed=100 + number)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n01\ttench\nn02\tgoldfish, Carassius auratus\n")
    return root


def test_reads_the_usual_layout(root: Path) -> None:
    data = TinyImageNet(root=str(root), workers=0)
    arrays = data.load()
    assert replace(data.facts(), content="") == DataFacts(classes=3, image_shape=(3, 8, 8), n_train=6, n_test=4)
    assert arrays.class_names == ("goldfish, Carassius auratus", "tench", "n03")
    assert arrays.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert arrays.test.labels.tolist() == [2, 0, 1, 2]


def test_each_label_goes_with_its_image(root: Path, tmp_path: Path, write_image: Callable[..., np.ndarray]) -> None:
    from PIL import Image

    arrays = TinyImageNet(root=str(root), workers=0).load()
    assert isinstance(arrays.train, Split)
    assert isinstance(arrays.test, Split)
    for split, path, index in (
        (arrays.train, "train/n01/images/n01_1.JPEG", 3),
        (arrays.test, "val/images/val_2.JPEG", 2),
    ):
        expected = np.asarray(Image.open(root / path)).transpose(2, 0, 1)
        np.testing.assert_array_equal(split.images[index], expected)


def test_size_and_skipping_are_passed_on(root: Path) -> None:
    (root / "val" / "images" / "val_1.JPEG").write_bytes(b"")
    data = TinyImageNet(root=str(root), size=16, on_corrupt="skip", workers=0)
    arrays = data.load()
    assert isinstance(arrays.test, Split)
    assert data.facts().image_shape == arrays.test.images.shape[1:] == (3, 16, 16)
    assert arrays.corrupt == 1
    assert arrays.test.labels.tolist() == [2, 1, 2]


def test_another_layout_is_explained(root: Path) -> None:
    def message() -> str:
        with pytest.raises(DataError) as error:
            TinyImageNet(root=str(root)).load()
        return str(error.value)

    annotations = root / "val" / "val_annotations.txt"
    with annotations.open("a") as file:
        file.write("val_9.JPEG\tn02\t0\t0\t1\t1\n")
    assert message() == f"{root}/val/images/val_9.JPEG: cannot be read: No such file or directory"
    with annotations.open("a") as file:
        file.write("val_0.JPEG\tn99\t0\t0\t1\t1\n")
    assert message() == f"{annotations}:6: 'n99' is not in wnids.txt"
    annotations.unlink()
    assert message() == f"{annotations}: No such file or directory; data.root must have Tiny ImageNet's usual layout"
    shutil.rmtree(root / "train" / "n03")
    assert message() == f"{root}/train/n03/images: no such folder, but wnids.txt lists n03"
    (root / "wnids.txt").write_text("")
    assert message() == f"{root}/wnids.txt: is empty"
    (root / "wnids.txt").unlink()
    assert message() == f"{root}/wnids.txt: No such file or directory; data.root must have Tiny ImageNet's usual layout"
    shutil.rmtree(root)
    assert (
        message() == f"data.root: {root}: no such folder; set it to the folder that contains wnids.txt, train/ and val/"
    )
