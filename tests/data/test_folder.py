from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdbench.data.base import DataFacts, Split
from kdbench.data.folder import ImageFolder
from kdbench.errors import DataError

WriteImage = Callable[..., np.ndarray]


def test_facts_come_from_names_and_one_header(folder: Path) -> None:
    for path in sorted(folder.rglob("train/**/*.png"))[1:]:
        path.write_bytes(b"never read")
    facts = ImageFolder(root=str(folder)).facts()
    assert replace(facts, content="") == DataFacts(classes=2, image_shape=(3, 8, 8), n_train=6, n_test=4)
    assert ImageFolder(root=str(folder), size=32).facts().image_shape == (3, 32, 32)


def test_loads_images_by_class(folder: Path, write_image: WriteImage, tmp_path: Path) -> None:
    arrays = ImageFolder(root=str(folder), workers=0).load()
    assert isinstance(arrays.train, Split)
    assert isinstance(arrays.test, Split)
    assert arrays.class_names == ("cat", "dog")
    assert arrays.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert arrays.test.labels.tolist() == [0, 0, 1, 1]
    cat = write_image(tmp_path / "again.png", seed=3)  # the seed of train/cat/0.png
    np.testing.assert_array_equal(arrays.train.images[0], cat.transpose(2, 0, 1))


def test_other_files_hidden_files_and_deeper_folders(folder: Path, write_image: WriteImage) -> None:
    (folder / "train" / "cat" / "Thumbs.db").write_text("")
    (folder / "train" / "cat" / ".hidden.png").write_text("")
    (folder / "train" / ".DS_Store").write_text("")
    (folder / "train" / ".cache").mkdir()
    (folder / "README.txt").write_text("")
    write_image(folder / "train" / "cat" / "more" / "1.PNG")
    assert ImageFolder(root=str(folder)).facts().n_train == 7


def test_statistics_may_be_given(folder: Path) -> None:
    given = ImageFolder(root=str(folder), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).facts()
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_the_test_folder_is_test_or_val_or_named(folder: Path) -> None:
    shutil.copytree(folder / "test", folder / "holdout")
    (folder / "holdout" / "cat" / "0.png").unlink()
    assert ImageFolder(root=str(folder), test="holdout").facts().n_test == 3
    (folder / "test").rename(folder / "val")
    assert ImageFolder(root=str(folder)).facts().n_test == 4


def case(what: str) -> Callable[[Path], str]:
    """Break the folder in a way, and say with which message."""

    def missing_root(root: Path) -> str:
        shutil.rmtree(root)
        return f"data.root: {root}: no such folder; set it to the folder that contains train/ and test/ (or val/)"

    def root_is_a_file(root: Path) -> str:
        shutil.rmtree(root)
        root.write_text("")
        return f"data.root: {root}: no such folder; set it to the folder that contains train/ and test/ (or val/)"

    def no_train(root: Path) -> str:
        shutil.rmtree(root / "train")
        return f"{root}/train: no such folder; data.root must contain train/<class>/ and test/<class>/ (or val/)"

    def no_test(root: Path) -> str:
        shutil.rmtree(root / "test")
        return f"{root}: has neither test/ nor val/; set data.test to the test folder's name"

    def no_classes(root: Path) -> str:
        shutil.rmtree(root / "train")
        (root / "train").mkdir()
        return f"{root}/train: contains no class folders; put images into {root}/train/<class>/"

    def missing_class(root: Path) -> str:
        shutil.rmtree(root / "test" / "dog")
        return f"{root}/test: has no folder for class 'dog' of {root}/train"

    def extra_class(root: Path) -> str:
        (root / "test" / "fox").mkdir()
        return f"{root}/test/fox: is not a class of {root}/train"

    def empty_class(root: Path) -> str:
        shutil.rmtree(root / "train" / "dog")
        (root / "train" / "dog").mkdir()
        extensions = ".jpg, .jpeg, .png, .bmp, .gif, .pgm, .ppm, .tif, .tiff, .webp"
        return f"{root}/train/dog: contains no images ({extensions})"

    return {function.__name__: function for function in list(locals().values()) if callable(function)}[what]


@pytest.mark.parametrize(
    "what",
    [
        "missing_root",
        "root_is_a_file",
        "no_train",
        "no_test",
        "no_classes",
        "missing_class",
        "extra_class",
        "empty_class",
    ],
)
def test_another_layout_is_explained(folder: Path, what: str) -> None:
    message = case(what)(folder)
    with pytest.raises(DataError) as from_facts:
        ImageFolder(root=str(folder)).facts()
    with pytest.raises(DataError) as from_load:
        ImageFolder(root=str(folder)).load()
    assert str(from_facts.value) == str(from_load.value) == message
