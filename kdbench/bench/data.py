"""Part ``data``: images per second of decoding JPEG files, of streaming them, and of augmentation on the device."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.bench.session import NO_TIME, Session
from kdbench.bench.timing import repeated, synchronize
from kdbench.data.base import Arrays, DataFacts, FileSplit
from kdbench.data.content import content_of
from kdbench.data.decode import decoded
from kdbench.data.open import open_feed
from kdbench.parts import Parts
from kdbench.recipe import Recipe

WIDTH, HEIGHT = 400, 300
"""Of the JPEG files, in pixels; few images of ImageNet are smaller."""
FILES = 128
"""Different files; names repeat for more images."""
DECODED = 64
STREAMED = 224
"""Side of the images, in pixels, that are decoded once and that are streamed."""
AUGMENTATIONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "none": (),
    "crop and flip": ({"name": "crop", "padding": 4}, {"name": "flip"}),
    "crop, flip and randaugment": ({"name": "crop", "padding": 4}, {"name": "flip"}, {"name": "randaugment"}),
    "crop, flip and mixup": ({"name": "crop", "padding": 4}, {"name": "flip"}, {"name": "mixup"}),
}
BATCH_SIZE = 64


def measure(session: Session) -> None:
    """Measure augmentation, then files."""
    _augmentation(session)
    with _own_cache(session.folder / "cache"):
        files = write_images(session.folder / "images", FILES)
        one = _decoding(session, files, processes=0, images=FILES)
        many = os.cpu_count() or 1
        # About two seconds of work, against which the start of the processes counts little.
        images = max(FILES, int(2 * one * many)) if one else FILES
        _decoding(session, files, processes=many, images=images)
        _streaming(session, files)


def _augmentation(session: Session) -> None:
    world = session.world()
    for number, (name, steps) in enumerate(AUGMENTATIONS.items()):
        settings = {"augmentation": name, "image_shape": list(world.image_shape), "batch_size": BATCH_SIZE}
        if not session.budget.left:
            session.leave_out("augmentation", settings, NO_TIME)
            continue
        recipe = Recipe.model_validate({"epochs": 1, "batch_size": BATCH_SIZE, "augmentation": list(steps)})
        feed = world.feed(recipe)
        # The next epoch begins where one ends.
        batches = itertools.chain.from_iterable(feed.epoch("main", epoch) for epoch in itertools.count())
        seconds = 0.4 * session.budget.left / (len(AUGMENTATIONS) - number)
        times = repeated(partial(next, batches), session.device, seconds)
        session.add("augmentation", settings, [BATCH_SIZE / time for time in times], "images/s")


def _decoding(session: Session, files: FileSplit, *, processes: int, images: int) -> float:
    """Decode ``images`` files into arrays; the rate, or 0 if there was no time."""
    settings = {"jpeg": f"{WIDTH}x{HEIGHT}", "side": DECODED, "processes": processes or 1, "images": images}
    if not session.budget.left:
        session.leave_out("decoding", settings, NO_TIME)
        return 0.0
    train = repeat(files, images)
    test = repeat(files, 1)
    content = content_of(train, test)
    start = time.perf_counter()
    decoded(
        f"bench-{processes}", train, test, content=content, class_names=("a",), size=DECODED, workers=processes
    )  # fmt: skip
    rate = images / (time.perf_counter() - start)
    session.add("decoding", settings, [rate], "images/s")
    return rate


def _streaming(session: Session, files: FileSplit) -> None:
    recipe = Recipe.model_validate(
        {
            "epochs": 1,
            "batch_size": BATCH_SIZE,
            "augmentation": [{"name": "random_resized_crop", "size": STREAMED}, {"name": "flip"}],
        }
    )
    settings = {"jpeg": f"{WIDTH}x{HEIGHT}", "side": STREAMED, "processes": files.workers, "batch_size": BATCH_SIZE}
    if not session.budget.left:
        session.leave_out("streaming", settings, NO_TIME)
        return
    many = repeat(files, 100 * BATCH_SIZE)
    facts = DataFacts(1, (3, STREAMED, STREAMED), len(many.files), 1, (0.5,) * 3, (0.25,) * 3)
    feed = open_feed(
        Arrays(many, repeat(files, 1), "random"),
        facts,
        augmentation=Parts.of(recipe).steps,
        batch_size=BATCH_SIZE,
        seed=0,
        device=session.device,
    )
    over = session.budget.until(0.8)
    batches = feed.epoch("main", 0)
    # The first batches were read while the processes started.
    ready = 2 * max(files.workers, 1)
    rates: list[float] = []
    for number, _ in enumerate(batches):
        synchronize(session.device)
        now = time.perf_counter()
        if number == ready:
            start = now
        if number > ready and (number - ready) % ready == 0:
            rates.append(ready * BATCH_SIZE / (now - start))
            start = now
            if over():
                break
    if rates:
        session.add("streaming", settings, rates, "images/s")
    else:
        session.leave_out("streaming", settings, NO_TIME)


def write_images(folder: Path, number: int) -> FileSplit:
    """JPEG files of smooth random images, whose sizes are about those of photographs."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for index in range(number):
        coarse = draw.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        image.save(folder / f"{index}.jpg", quality=90)
    names = tuple(f"{index}.jpg" for index in range(number))
    return FileSplit(folder, names, np.zeros(number, np.int64), workers=min(8, os.cpu_count() or 1))


def repeat(files: FileSplit, images: int) -> FileSplit:
    """So many images, from the same files."""
    return files.take(np.arange(images) % len(files.files))


@contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Decoded images are removed with the other temporary files."""
    before = os.environ.get("KDBENCH_CACHE")
    os.environ["KDBENCH_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["KDBENCH_CACHE"]
        else:
            os.environ["KDBENCH_CACHE"] = before
