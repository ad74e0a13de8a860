from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.data.augment import AugmentationStep
from kdbench.data.base import Arrays, DataFacts, Split
from kdbench.data.feed import Feed, Minibatch
from kdbench.data.open import open_feed
from kdbench.data.resident import ResidentFeed
from kdbench.errors import DataError
from kdbench.parts import Parts
from kdbench.recipe import Recipe


def step(name: str, **settings: Any) -> AugmentationStep:
    """A built-in augmentation."""
    return Parts.of(Recipe(epochs=1, augmentation=({"name": name, **settings},))).steps[0]


CPU = torch.device("cpu")
FACTS = DataFacts(classes=5, image_shape=(3, 8, 8), n_train=50, n_test=23, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
EVERYTHING: tuple[AugmentationStep, ...] = (
    step("crop", padding=2),
    step("flip"),
    step("shift"),
    step("random_resized_crop", size=8),
    step("randaugment"),
    step("cutout", size=3),
    step("random_erasing"),
    step("mixup"),
    step("cutmix"),
)


@pytest.fixture
def arrays() -> Arrays:
    random = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = random.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        return Split(images, random.integers(0, 5, count))

    return Arrays(split(50), split(23), fingerprint="f")


def feed_of(
    arrays: Arrays, augmentation: tuple[AugmentationStep, ...] = (), seed: int = 0, batch_size: int = 16
) -> Feed:
    return open_feed(arrays, FACTS, augmentation=augmentation, batch_size=batch_size, seed=seed, device=CPU)


def normalized(images: np.ndarray) -> np.ndarray:
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (FACTS.mean, FACTS.std))
    return (images / 255 - mean) / std


def tensors(batches: list[Minibatch]) -> list[torch.Tensor]:
    fields = (vars(batch).values() for batch in batches)
    return [value for values in fields for value in values if value is not None]


def same(first: list[Minibatch], second: list[Minibatch]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(16, [16, 16, 16, 2]), (7, [7] * 6 + [8]), (25, [25, 25]), (64, [50])]
)
def test_no_image_is_left_alone(arrays: Arrays, batch_size: int, sizes: list[int]) -> None:
    feed = feed_of(arrays, batch_size=batch_size)
    batches = list(feed.epoch("main", 0))
    assert [len(batch.images) for batch in batches] == sizes
    assert feed.steps_per_epoch == len(sizes)
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(50))


def test_an_epoch_gives_every_training_image_once(arrays: Arrays) -> None:
    feed = feed_of(arrays)
    batches = list(feed.epoch("main", 0))
    assert (feed.n_train, feed.n_evaluate, feed.steps_per_epoch) == (50, 23, 4)
    assert [len(batch.labels) for batch in batches] == [16, 16, 16, 2]
    indices = torch.cat([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == list(range(50))
    assert indices.tolist() != list(range(50))
    assert isinstance(arrays.train, Split)
    for batch in batches:
        chosen = batch.indices.numpy()
        np.testing.assert_array_equal(batch.labels.numpy(), arrays.train.labels[chosen])
        np.testing.assert_allclose(batch.images.numpy(), normalized(arrays.train.images[chosen]), rtol=1e-4, atol=1e-5)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.images.dtype, batch.labels.dtype, batch.indices.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )
        assert batch.mixed_labels is None
        assert batch.mix is None


def test_the_same_seed_stage_and_epoch_give_the_same_bits_whatever_else_runs(arrays: Arrays) -> None:
    feed = feed_of(arrays, EVERYTHING)
    list(feed.epoch("main", 0))
    expected = list(feed.epoch("main", 1))

    torch.manual_seed(99)
    np.random.seed(99)
    other = feed_of(arrays, EVERYTHING, seed=7).epoch("main", 0)
    got = []
    for batch in feed_of(arrays, EVERYTHING).epoch("main", 1):
        torch.rand(3)
        next(other, None)
        got.append(batch)
    assert same(expected, got)


def test_a_feed_leaves_the_global_generators_alone(arrays: Arrays) -> None:
    torch.manual_seed(3)  # a state that no augmentation leaves behind
    before = torch.get_rng_state()
    list(feed_of(arrays, EVERYTHING).epoch("main", 0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("augmentation", [(), EVERYTHING])
def test_seed_stage_and_epoch_each_change_an_epoch(arrays: Arrays, augmentation: tuple[AugmentationStep, ...]) -> None:
    reference = list(feed_of(arrays, augmentation).epoch("main", 0))
    assert not same(reference, list(feed_of(arrays, augmentation, seed=1).epoch("main", 0)))
    assert not same(reference, list(feed_of(arrays, augmentation).epoch("boundary", 0)))
    assert not same(reference, list(feed_of(arrays, augmentation).epoch("main", 1)))


@pytest.mark.parametrize("chosen", EVERYTHING, ids=lambda chosen: chosen.name)
def test_seed_stage_and_epoch_each_change_the_augmentation(arrays: Arrays, chosen: AugmentationStep) -> None:
    # Where all images are alike, the order shows in nothing but labels and indices.
    image = np.random.default_rng(5).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8)
    alike = replace(arrays, train=Split(np.repeat(image, 50, 0), np.arange(50)))

    def seen(seed: int, stage: str, epoch: int) -> bytes:
        batches = feed_of(alike, (chosen,), seed=seed).epoch(stage, epoch)
        return b"".join((batch.images if batch.mix is None else batch.mix).numpy().tobytes() for batch in batches)

    assert seen(0, "main", 0) == seen(0, "main", 0)
    assert len({seen(0, "main", 0), seen(1, "main", 0), seen(0, "boundary", 0), seen(0, "main", 1)}) == 4


@pytest.mark.parametrize("chosen", EVERYTHING, ids=lambda chosen: chosen.name)
def test_augmentation_changes_images_but_neither_order_nor_labels(arrays: Arrays, chosen: AugmentationStep) -> None:
    plain = list(feed_of(arrays).epoch("main", 0))
    augmented = list(feed_of(arrays, (chosen,)).epoch("main", 0))
    for before, after in zip(plain, augmented, strict=True):
        assert torch.equal(before.indices, after.indices)
        assert torch.equal(before.labels, after.labels)
        assert after.images.shape == before.images.shape
        assert after.images.is_contiguous(memory_format=torch.channels_last)
    assert not same(plain, augmented)


@pytest.mark.parametrize("chosen", [step("mixup"), step("cutmix")], ids=lambda chosen: chosen.name)
def test_mixing_gives_both_labels_and_the_share(arrays: Arrays, chosen: AugmentationStep) -> None:
    for batch in feed_of(arrays, (chosen,)).epoch("main", 0):
        assert batch.mixed_labels is not None
        assert batch.mix is not None
        assert sorted(batch.mixed_labels.tolist()) == sorted(batch.labels.tolist())
        assert batch.mix.shape == ()
        assert 0 <= float(batch.mix) <= 1


def test_evaluation_gives_the_split_in_order_without_augmentation(arrays: Arrays) -> None:
    validation = Split(arrays.test.images[:7], arrays.test.labels[:7])  # type: ignore[union-attr]
    arrays = replace(arrays, validation=validation)
    feed = feed_of(arrays, EVERYTHING)
    for name, expected in (("test", arrays.test), ("validation", validation)):
        batches = list(feed.evaluate(name, batch_size=5))  # type: ignore[arg-type]
        images, labels = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
        np.testing.assert_array_equal(labels, expected.labels)
        np.testing.assert_allclose(images, normalized(expected.images), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_no_validation_split(arrays: Arrays) -> None:
    with pytest.raises(DataError, match=r"data.validation: the data set has no validation split; set it to"):
        next(feed_of(arrays).evaluate("validation"))


def test_feeds_share_the_data_on_the_device(arrays: Arrays) -> None:
    first, second = feed_of(arrays), feed_of(arrays, seed=1)
    assert isinstance(first, ResidentFeed)
    assert isinstance(second, ResidentFeed)
    assert first.train.images.data_ptr() == second.train.images.data_ptr()


def test_the_device_copy_goes_with_the_data(arrays: Arrays) -> None:
    from kdbench.data import resident as module

    gc.collect()
    count = len(module._placed)
    mine = replace(arrays)
    feed_of(mine)
    assert len(module._placed) == count + 1
    del mine
    gc.collect()
    assert len(module._placed) == count


def test_measured_statistics_stand_in_for_facts(arrays: Arrays) -> None:
    unknown = replace(FACTS, mean=None, std=None)
    measured = replace(arrays, mean=FACTS.mean, std=FACTS.std)
    settings = {"augmentation": (), "batch_size": 16, "seed": 0, "device": CPU}
    got = list(open_feed(measured, unknown, **settings).epoch("main", 0))  # type: ignore[arg-type]
    assert same(got, list(feed_of(arrays).epoch("main", 0)))
    with pytest.raises(DataError, match="the data set has no channel mean and std"):
        open_feed(arrays, unknown, **settings)  # type: ignore[arg-type]


def test_a_crop_to_another_size_is_refused(arrays: Arrays) -> None:
    with pytest.raises(DataError) as error:
        feed_of(arrays, (step("random_resized_crop", size=16),))
    assert str(error.value) == (
        "recipe.augmentation: random_resized_crop.size: must be the data set's image size (8x8), "
        "so that training and test images have the same size, got 16"
    )
