from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data.augment import AugmentationStep
from kdbench.data.base import Arrays
from kdbench.data.feed import Feed, Minibatch
from kdbench.data.imagenet import ImageNet
from kdbench.data.open import open_feed
from kdbench.data.splits import limit
from kdbench.data.stream import StreamedFeed
from kdbench.errors import DataError
from kdbench.parts import Parts
from kdbench.recipe import Recipe


def step(name: str, **settings: Any) -> AugmentationStep:
    """A built-in augmentation."""
    return Parts.of(Recipe(epochs=1, augmentation=({"name": name, **settings},))).steps[0]


SIZE = 28
PLAIN: tuple[AugmentationStep, ...] = (step("random_resized_crop", size=SIZE), step("flip"))
EVERYTHING: tuple[AugmentationStep, ...] = (
    *PLAIN,
    step("randaugment"),
    step("random_erasing"),
    step("mixup"),
)


@pytest.fixture
def root(tmp_path: Path, write_image: Callable[..., np.ndarray]) -> Path:
    """Images of many sizes, all larger than the networks' input."""
    root, seed = tmp_path / "imagenet", 0
    for split, count in (("train", 5), ("val", 3)):
        for name in ("a", "b"):
            for number in range(count):
                write_image(root / split / name / f"{number}.png", (40 + 7 * number, 52 - 3 * number), seed)
                seed += 1
    return root


def feed_of(
    root: Path, augmentation: tuple[AugmentationStep, ...] = PLAIN, *, seed: int = 0, workers: int = 0, batch: int = 4
) -> Feed:
    data = ImageNet(root=str(root), size=SIZE, workers=workers)
    return open_feed(
        data.load(), data.facts(), augmentation=augmentation, batch_size=batch, seed=seed, device=torch.device("cpu")
    )


def same(first: list[Minibatch], second: list[Minibatch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices) for a, b in pairs)


def test_an_epoch_gives_every_training_image_once(root: Path) -> None:
    feed = feed_of(root, EVERYTHING)
    assert isinstance(feed, StreamedFeed)
    batches = list(feed.epoch("main", 0))
    assert (feed.n_train, feed.n_evaluate, feed.steps_per_epoch) == (10, 6, 3)
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert [len(batch.labels) for batch in feed_of(root, batch=3).epoch("main", 0)] == [3, 3, 4]
    indices = torch.cat([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == list(range(10))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), indices // 5)
    for batch in batches:
        assert batch.images.shape[1:] == (3, SIZE, SIZE)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.mix is not None


def test_the_same_bits_whatever_workers_read_them_and_whatever_ran_before(root: Path) -> None:
    expected = list(feed_of(root, EVERYTHING).epoch("main", 1))
    feed = feed_of(root, EVERYTHING, workers=2)
    list(feed.epoch("main", 0))
    torch.manual_seed(99)
    next(feed.epoch("boundary", 0))  # left in the middle
    assert same(expected, list(feed.epoch("main", 1)))


def test_seed_stage_and_epoch_each_change_an_epoch(root: Path) -> None:
    reference = list(feed_of(root).epoch("main", 0))
    assert not same(reference, list(feed_of(root, seed=1).epoch("main", 0)))
    assert not same(reference, list(feed_of(root).epoch("boundary", 0)))
    assert not same(reference, list(feed_of(root).epoch("main", 1)))


def test_an_image_is_augmented_by_its_index_alone(root: Path) -> None:
    # In batches of one or four, the same epoch shows each image alike.
    singles, fours = (
        {
            int(i): image
            for b in feed_of(root, batch=size).epoch("main", 0)
            for i, image in zip(b.indices, b.images, strict=True)
        }
        for size in (1, 4)
    )
    assert all(torch.equal(singles[index], fours[index]) for index in range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(root: Path, workers: int) -> None:
    torch.manual_seed(3)  # a state that no augmentation leaves behind
    before = torch.get_rng_state()
    feed = feed_of(root, EVERYTHING, workers=workers)
    list(feed.epoch("main", 0))
    list(feed.evaluate())
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_is_the_centre_of_the_resized_image(root: Path) -> None:
    feed, data = feed_of(root, EVERYTHING), ImageNet(root=str(root), size=SIZE)
    images, labels = (torch.cat(parts) for parts in zip(*feed.evaluate(batch_size=4), strict=True))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    paths = [root / "val" / name / f"{number}.png" for name in ("a", "b") for number in range(3)]
    for path, got in zip(paths, images, strict=True):
        image = Image.open(path)
        shorter = min(image.size)
        width, height = (int(side * 32 / shorter) for side in image.size)  # 32 * 0.875 = 28
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        top, left = round((height - SIZE) / 2), round((width - SIZE) / 2)
        centre = resized[top : top + SIZE, left : left + SIZE].transpose(2, 0, 1) / 255
        mean, std = (np.reshape(values, (3, 1, 1)) for values in (data.mean, data.std))
        np.testing.assert_allclose(got.numpy(), (centre - mean) / std, rtol=1e-4, atol=1e-5)


def test_without_a_resizing_crop_training_sees_the_centre_too(root: Path) -> None:
    data = ImageNet(root=str(root), size=SIZE, workers=0)
    arrays = data.load()
    arrays = Arrays(train=arrays.test, test=arrays.test, fingerprint="f")
    settings = {"batch_size": 6, "seed": 0, "device": torch.device("cpu")}
    feed = open_feed(arrays, data.facts(), augmentation=(), **settings)  # type: ignore[arg-type]
    (train,), ((test, _),) = feed.epoch("main", 0), feed.evaluate()
    assert torch.equal(train.images, test[train.indices])
    cropped = open_feed(arrays, data.facts(), augmentation=(step("crop"),), **settings)  # type: ignore[arg-type]
    assert not torch.equal(next(iter(cropped.epoch("main", 0))).images, train.images)


def test_crops_come_from_the_whole_image_at_the_scale_asked_for(tmp_path: Path) -> None:
    # On a ramp, the slope of a row tells how much of the width the crop holds.
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 3))
    for split in ("train", "val"):
        for number in range(24):
            path = tmp_path / "ramps" / split / "a" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp).save(path)
    crop = step("random_resized_crop", size=SIZE, scale=(0.2, 0.3))
    data = ImageNet(root=str(tmp_path / "ramps"), size=SIZE)
    values = torch.cat([batch.images for batch in feed_of(tmp_path / "ramps", (crop,)).epoch("main", 0)])
    pixels = values[:, 0] * data.std[0] * 255 + data.mean[0] * 255
    widths = (pixels[:, 0, -5] - pixels[:, 0, 4]) / (SIZE - 9) * SIZE / 200
    # Width is the root of area times ratio, the ratio between 3/4 and 4/3.
    assert widths.min() > (0.2 * 3 / 4) ** 0.5 - 0.02
    assert widths.max() < (0.3 * 4 / 3) ** 0.5 + 0.02
    assert widths.std() > 0.02


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_when_its_batch_is_read(root: Path, workers: int) -> None:
    (root / "train" / "b" / "3.png").write_bytes(b"broken")
    with pytest.raises(DataError) as error:
        list(feed_of(root, workers=workers).epoch("main", 0))
    assert str(error.value) == (f"{root}/train/b/3.png: cannot be decoded: it is not an image")


def test_a_validation_split_can_be_streamed(root: Path) -> None:
    data = ImageNet(root=str(root), size=SIZE, workers=0)
    arrays = limit(data.load(), validation=4)
    settings = {"augmentation": PLAIN, "batch_size": 4, "seed": 0, "device": torch.device("cpu")}
    feed = open_feed(arrays, data.facts(), **settings)  # type: ignore[arg-type]
    assert feed.n_train == 6
    assert [labels.tolist() for _, labels in feed.evaluate("validation")] == [[0, 0, 1, 1]]
    with pytest.raises(DataError, match=r"data.validation: the data set has no validation split"):
        next(feed_of(root).evaluate("validation"))
