from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from kdbench.data import augment
from kdbench.data.augment import AugmentationStep, Draws, Normalize, Pipeline
from kdbench.parts import Parts
from kdbench.recipe import Recipe


def noise(batch: int, channels: int = 3, height: int = 6, width: int = 7) -> Tensor:
    pixels = np.random.default_rng(0).integers(1, 256, (batch, channels, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def draws(seed: int = 0, host: np.random.Generator | None = None) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), host or np.random.default_rng(seed))


def step(name: str, **settings: Any) -> AugmentationStep:
    """A built-in augmentation."""
    return Parts.of(Recipe(epochs=1, augmentation=({"name": name, **settings},))).steps[0]


def windows(image: np.ndarray, reach: int, mode: str) -> dict[tuple[int, int], np.ndarray]:
    """Every window of the image's size out of the padded image."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode=mode)
    span = range(2 * reach + 1)
    return {(y, x): padded[:, y : y + height, x : x + width] for y in span for x in span}


@pytest.mark.parametrize(("name", "mode"), [("crop", "constant"), ("shift", "edge")])
def test_moves_are_windows_of_the_padded_image_all_equally_likely(name: str, mode: str) -> None:
    images = noise(1).repeat(2500, 1, 1, 1)
    moved = step(name, **{"crop": {"padding": 2}, "shift": {"pixels": 2}}[name])(images, draws()).numpy()
    possible = {window.tobytes(): place for place, window in windows(images[0].numpy(), 2, mode).items()}
    places = [possible[np.ascontiguousarray(image).tobytes()] for image in moved]
    counts = [places.count(place) for place in possible.values()]
    assert len(counts) == 25
    assert chisquare(counts).pvalue > 1e-3


def test_crop_moves_each_image_of_a_batch_by_itself() -> None:
    images = noise(20)
    moved = augment.crop(images, draws(), padding=2).numpy()
    found = set()
    for before, after in zip(images.numpy(), moved, strict=True):
        matches = [place for place, window in windows(before, 2, "constant").items() if (window == after).all()]
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) > 8


def test_flip() -> None:
    images = noise(1).repeat(2000, 1, 1, 1)
    flipped = augment.flip(images, draws(), p=0.3).numpy()
    mirrored = images[0].numpy()[:, :, ::-1]
    is_mirrored = np.array([(image == mirrored).all() for image in flipped])
    is_original = np.array([(image == images[0].numpy()).all() for image in flipped])
    assert (is_mirrored ^ is_original).all()
    assert abs(is_mirrored.mean() - 0.3) < 0.05
    assert torch.equal(augment.flip(images, draws(), p=0.0), images)
    assert torch.equal(augment.flip(images, draws(), p=1.0), images.flip(-1))


def test_random_resized_crop_cuts_boxes_of_the_right_area_and_shape() -> None:
    # On an image whose values are its own coordinates, the slope of the result is the box's size.
    side = 32
    ramp = torch.arange(side, dtype=torch.uint8) * 8
    image = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])
    cut = augment.random_resized_crop(image.repeat(500, 1, 1, 1), draws(), size=side, scale=(0.25, 0.75)).double() / 8
    inner = slice(4, -4)  # where the border's repetition does not bend the ramp
    steps = torch.arange(side, dtype=torch.float64)[inner]
    widths = (cut[:, 0, :, inner].mean(1) @ (steps - steps.mean())) / steps.var(correction=0) / len(steps) * side
    heights = (cut[:, 1, inner].mean(2) @ (steps - steps.mean())) / steps.var(correction=0) / len(steps) * side
    areas, ratios = (widths * heights / side**2).numpy(), (widths / heights).numpy()
    assert areas.min() > 0.24
    assert areas.max() < 0.76
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    # Boxes that do not fit are drawn again, which makes large areas a little rarer: only below 0.5 uniform.
    small = areas[areas < 0.5]
    assert kstest(small, "uniform", args=(0.25, 0.25)).pvalue > 1e-3
    # Each box lies inside the image: no value leaves the ramp, and places differ.
    lefts = cut[:, 0, 0, 0]
    assert lefts.min() >= 0
    assert len(lefts.unique()) > 50


def test_random_resized_crop_of_everything_is_the_image_itself() -> None:
    images = noise(4, height=8, width=8)
    # A box of the whole area fits only where its ratio is 1, so that all attempts fail: the whole is taken.
    assert torch.equal(augment.random_resized_crop(images, draws(), size=8, scale=(1.0, 1.0)), images)


def test_rand_augment_draws_from_its_stream_alone() -> None:
    images = noise(16, height=16, width=16)
    before = torch.get_rng_state()
    first = augment.rand_augment(images, draws(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = augment.rand_augment(images, draws(1))
    other = augment.rand_augment(images, draws(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape


def test_rand_augment_treats_each_image_by_itself() -> None:
    image = noise(1, height=16, width=16)
    changed = augment.rand_augment(image.repeat(64, 1, 1, 1), draws(), num_ops=1)
    kinds = {image.numpy().tobytes() for image in changed}
    assert 8 < len(kinds) <= 23  # 14 operations, 9 of them with a sign
    assert image.numpy()[0].tobytes() in kinds  # one of them is the identity


def test_cutout_blanks_a_square_around_any_pixel() -> None:
    images = noise(3000).float()
    blank = (augment.cutout(images, draws(), size=3) == 0).numpy()
    assert (blank == blank[:, :1]).all()  # all channels alike
    # Oracle: the squares around each of the 42 centres, by a loop.
    possible = {}
    for row in range(6):
        for column in range(7):
            mask = np.zeros((6, 7), bool)
            for y in range(row - 1, row + 2):
                for x in range(column - 1, column + 2):
                    if 0 <= y < 6 and 0 <= x < 7:
                        mask[y, x] = True
            possible[mask.tobytes()] = (row, column)
    centres = [possible[mask.tobytes()] for mask in blank[:, 0]]
    counts = [centres.count(centre) for centre in possible.values()]
    assert chisquare(counts).pvalue > 1e-3


def test_random_erasing_blanks_rectangles() -> None:
    images = noise(2000, height=32, width=32).float()
    blank = (augment.random_erasing(images, draws()) == 0).numpy()[:, 0]
    erased = blank.any(axis=(1, 2))
    assert abs(erased.mean() - 0.25) < 0.04
    areas, ratios = [], []
    for mask in blank[erased]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width
        areas.append(height * width / 1024)
        ratios.append(width / height)
    assert 0.01 < min(areas) < 0.06
    assert 0.28 < max(areas) < 0.36
    assert min(ratios) > 0.25
    assert max(ratios) < 4
    assert min(ratios) < 0.5 < 2 < max(ratios)


def test_mixup_mixes_images_as_it_says() -> None:
    images, labels = noise(9).float(), torch.arange(9)
    mixed = augment.mixup(images, labels, draws())
    share = float(mixed.share)
    assert 0 < share < 1
    assert sorted(mixed.labels.tolist()) == labels.tolist()
    for i, j in enumerate(mixed.labels.tolist()):
        expected = share * images[i].double() + (1 - share) * images[j].double()
        torch.testing.assert_close(mixed.images[i].double(), expected, rtol=1e-5, atol=1e-4)


def test_cutmix_pastes_the_share_that_it_says() -> None:
    images, labels = noise(9, height=16, width=16).float(), torch.arange(9)
    host, shares = np.random.default_rng(0), []
    for seed in range(30):
        mixed = augment.cutmix(images, labels, draws(seed, host))
        for i, j in enumerate(mixed.labels.tolist()):
            own = mixed.images[i] == images[i]
            assert (own | (mixed.images[i] == images[j])).all()
            if i != j:
                pasted = (~own).any(0).nonzero()
                area = 0 if len(pasted) == 0 else int((pasted.amax(0) - pasted.amin(0) + 1).prod())
                # Noise images agree in a pixel of all channels once in 16 million.
                assert area / 256 == pytest.approx(1 - float(mixed.share), abs=1e-6)
        shares.append(float(mixed.share))
    assert min(shares) < 0.4
    assert max(shares) > 0.8


def test_mix_shares_follow_the_beta_distribution() -> None:
    images, labels, host = noise(2).float(), torch.arange(2), np.random.default_rng(0)
    shares = [float(augment.mixup(images, labels, draws(host=host)).share) for _ in range(400)]
    assert kstest(shares, "beta", args=(0.8, 0.8)).pvalue > 1e-3


def test_normalize_equals_the_formula() -> None:
    images, mean, std = noise(5), (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    normalized = Normalize(mean, std, torch.device("cpu"))(images)
    expected = (images.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(normalized.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_a_pipeline_sorts_steps_by_what_they_work_on() -> None:
    crop, flip, cutout, erasing, mixup, cutmix = map(
        step, ("crop", "flip", "cutout", "random_erasing", "mixup", "cutmix")
    )
    pipeline = Pipeline.of([mixup, erasing, flip, cutmix, cutout, crop])
    assert pipeline == Pipeline((flip, crop), (erasing, cutout), (mixup, cutmix))


def test_one_mix_of_those_named_is_drawn_for_each_batch() -> None:
    pipeline = Pipeline.of([step("mixup"), step("cutmix")])
    images, labels = noise(8, height=16, width=16).float(), torch.arange(8)
    host, pasted = np.random.default_rng(0), 0
    for seed in range(200):
        mixed = pipeline.mix(images, labels, draws(seed, host))
        assert mixed is not None
        partners = images[mixed.labels]
        pasted += bool(((mixed.images == images) | (mixed.images == partners)).all())
    assert 70 < pasted < 130
    assert Pipeline.of([]).mix(images, labels, draws()) is None
