from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from kdbench.data.base import Arrays, DataFacts, Split
from kdbench.data.splits import limit, limit_facts, stratified
from kdbench.errors import DataError


def data_set(n_train: int = 100, n_test: int = 40, classes: int = 4) -> Arrays:
    """Every image holds its own number, so that it is known again."""

    def split(count: int) -> Split:
        images = np.zeros((count, 1, 2, 2), np.uint8)
        images[:, 0, 0, 0] = np.arange(count)
        return Split(images, np.arange(count, dtype=np.int64) % classes)

    return Arrays(split(n_train), split(n_test), fingerprint="f")


def numbers(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


FACTS = DataFacts(classes=4, image_shape=(1, 2, 2), n_train=100, n_test=40, mean=(0.5,), std=(0.2,))


@pytest.mark.parametrize("seed", range(5))
def test_stratified_gives_each_class_its_share(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.choice(7, 500, p=random.dirichlet(np.ones(7) * 2)).astype(np.int64)
    labels[:7] = np.arange(7)
    count = int(random.integers(20, 480))

    chosen = stratified(labels, count, seed=seed, purpose="x")

    assert len(set(chosen.tolist())) == count
    assert chosen.tolist() == sorted(chosen.tolist())
    shares = np.bincount(labels) * count / 500
    counts = np.bincount(labels[chosen], minlength=7)
    assert (np.abs(counts - shares) < 1).all()


def test_stratified_counts_agree_with_sklearn_where_shares_are_whole() -> None:
    labels = np.repeat(np.arange(3), (50, 100, 250))
    ours = np.bincount(labels[stratified(labels, 40, seed=0, purpose="x")])
    theirs, _ = train_test_split(labels, train_size=40, stratify=labels, random_state=0)
    assert ours.tolist() == np.bincount(theirs).tolist() == [5, 10, 25]


def test_stratified_takes_the_first_of_each_class_in_a_shuffled_order() -> None:
    # The shuffle stands for all time: results of different versions compare on the same images.
    labels = np.array([0, 1, 1, 2, 0, 1, 2, 1, 0, 2, 2, 2])
    seed = int.from_bytes(hashlib.sha256(b"5\x1fvalidation").digest()[:8], "big") // 2
    wanted, expected = {0: 2, 1: 2, 2: 2}, []  # 1.5, 2 and 2.5 of six: the lower of equal remainders gets it
    for index in np.random.RandomState(seed % 2**32).permutation(12):
        if wanted[labels[index]]:
            wanted[labels[index]] -= 1
            expected.append(index)
    assert stratified(labels, 6, seed=5, purpose="validation").tolist() == sorted(expected)
    assert stratified(labels, 6, seed=6, purpose="validation").tolist() != sorted(expected)
    assert stratified(labels, 6, seed=5, purpose="train_limit").tolist() != sorted(expected)


def test_stratified_leaves_no_class_favoured() -> None:
    labels = np.zeros(10, np.int64)
    hits = np.zeros(10)
    for seed in range(400):
        hits[stratified(labels, 3, seed=seed, purpose="x")] += 1
    assert (np.abs(hits / 400 - 0.3) < 0.1).all()


def test_limit_cuts_validation_from_the_limited_training_images() -> None:
    arrays = limit(data_set(), train_limit=40, test_limit=8, validation=8, seed=3)

    assert isinstance(arrays.train, Split)
    assert isinstance(arrays.test, Split)
    assert isinstance(arrays.validation, Split)
    train, validation = numbers(arrays.train), numbers(arrays.validation)
    assert len(train) == 32
    assert len(validation) == 8
    assert not set(train) & set(validation)
    assert train == sorted(train)
    assert np.bincount(arrays.train.labels).tolist() == [8] * 4
    assert np.bincount(arrays.validation.labels).tolist() == [2] * 4
    assert np.bincount(arrays.test.labels).tolist() == [2] * 4
    assert [number % 4 for number in train] == arrays.train.labels.tolist()


def test_a_fraction_is_of_what_the_limit_leaves() -> None:
    arrays = limit(data_set(), train_limit=40, validation=0.25)
    assert arrays.validation is not None
    assert (len(arrays.train.labels), len(arrays.validation.labels)) == (30, 10)


def test_nothing_to_cut_changes_nothing() -> None:
    arrays = data_set()
    assert limit(arrays) is arrays


def test_the_fingerprint_follows_every_cut() -> None:
    cuts = [
        {},
        {"train_limit": 40},
        {"train_limit": 44},
        {"test_limit": 40},
        {"validation": 40},
        {"validation": 40, "seed": 1},
    ]
    assert len({limit(data_set(), **cut).fingerprint for cut in cuts}) == len(cuts)


@pytest.mark.parametrize(
    "cut",
    [{}, {"train_limit": 50}, {"test_limit": 10}, {"validation": 0.1}, {"train_limit": 50, "validation": 7}],
)
def test_facts_agree_with_arrays(cut: dict[str, int]) -> None:
    facts, arrays = limit_facts(FACTS, **cut), limit(data_set(), **cut)
    assert (facts.n_train, facts.n_test) == (len(arrays.train.labels), len(arrays.test.labels))
    assert facts.n_validation == (len(arrays.validation.labels) if arrays.validation else 0)
    assert (facts.mean, facts.std) == (FACTS.mean, FACTS.std)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"train_limit": 101}, "data.train_limit: must be 1 to 100, the number of training images, got 101"),
        ({"test_limit": 0}, "data.test_limit: must be 1 to 40, the number of test images, got 0"),
        (
            {"train_limit": 20, "validation": 20},
            "data.validation: must leave at least one image in both parts of 20 training images, "
            "as a number of images or a fraction below 1, got 20",
        ),
    ],
)
def test_too_few_images(cut: dict[str, int], message: str) -> None:
    with pytest.raises(DataError) as from_arrays:
        limit(data_set(), **cut)
    with pytest.raises(DataError) as from_facts:
        limit_facts(FACTS, **cut)
    assert str(from_arrays.value) == str(from_facts.value) == message
