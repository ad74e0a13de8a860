from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.data.base import Arrays, DataFacts, FileSplit, Split
from kdbench.data.loaded import check_loaded
from kdbench.errors import DataError

FACTS = DataFacts(classes=3, image_shape=(1, 4, 4), n_train=6, n_test=3, mean=(0.5,), std=(0.2,))


def split(count: int, **changes: Any) -> Split:
    usual = Split(np.zeros((count, 1, 4, 4), np.uint8), np.arange(count, dtype=np.int64) % 3)
    return replace(usual, **changes)


SOUND = Arrays(split(6), split(3), "hash")


@pytest.mark.parametrize(
    "arrays",
    [
        SOUND,
        replace(SOUND, train=split(5), corrupt=1),
        replace(
            SOUND,
            train=FileSplit(Path(), tuple("abcdef"), np.zeros(6, np.int64)),
            test=FileSplit(Path(), tuple("abc"), np.zeros(3, np.int64)),
        ),
    ],
    ids=["in memory", "corrupt images left out", "files"],
)
def test_ok(arrays: Arrays) -> None:
    assert check_loaded(arrays, FACTS, "mine") is arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((1, 2), "must return kdbench.data.base.Arrays, got tuple"),
        (replace(SOUND, train=None), "the train split must be a Split or FileSplit, got NoneType"),
        (
            replace(SOUND, train=split(6, images=np.zeros((6, 1, 4, 4), np.float32))),
            "the train split must have images (N, 1, 4, 4) of uint8, got (6, 1, 4, 4) of float32",
        ),
        (
            replace(SOUND, test=split(3, images=np.zeros((3, 4, 4, 1), np.uint8))),
            "the test split must have images (N, 1, 4, 4) of uint8, got (3, 4, 4, 1) of uint8",
        ),
        (
            replace(SOUND, train=split(6, labels=np.zeros(6, np.int32))),
            "the train split must have labels (N,) of int64, got (6) of int32",
        ),
        (
            replace(SOUND, train=split(6, labels=[0, 1, 2, 0, 1, 2])),
            "the train split must have labels (N,) of int64, got list",
        ),
        (replace(SOUND, train=split(6, labels=np.zeros(5, np.int64))), "the train split has 6 images and 5 labels"),
        (
            replace(SOUND, test=split(3, labels=np.array([0, 1, 3]))),
            "the test split has labels 0 to 3, but the 3 classes are 0 to 2",
        ),
        (
            replace(SOUND, test=split(3, labels=np.array([-1, 1, 2]))),
            "the test split has labels -1 to 2, but the 3 classes are 0 to 2",
        ),
        (replace(SOUND, train=split(5)), "the train split has 5 images, but facts() gives 6"),
        (replace(SOUND, train=split(7), corrupt=1), "the train split has 7 images, but facts() gives 6"),
        (replace(SOUND, test=split(0), corrupt=3), "the test split has 0 images, but facts() gives 3"),
        (
            replace(SOUND, test=FileSplit(Path(), tuple("abc"), np.zeros(3, np.int64))),
            "one split is in memory and the other in files; load both in the same way",
        ),
        (replace(SOUND, fingerprint=""), "fingerprint must be a hash of the data, got ''"),
    ],
)
def test_nok(arrays: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        check_loaded(arrays, FACTS, "mine")
    separator = " " if message.startswith("must return") else ": "
    assert str(error.value) == f"data set 'mine': load(){separator}{message}"


def test_nok_statistics() -> None:
    for facts, found in ((replace(FACTS, mean=None), None), (replace(FACTS, mean=(float("nan"),)), (float("nan"),))):
        with pytest.raises(DataError) as error:
            check_loaded(SOUND, facts, "mine")
        assert str(error.value) == (
            f"data set 'mine': load(): mean must be 1 finite numbers, from facts() or load(), got {found!r}"
        )
