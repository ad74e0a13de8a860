from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from kdbench.bench import data


@pytest.fixture
def files(tmp_path):
    return data.write_images(tmp_path / "images", 3)


def test_images_are_jpeg_files_that_differ(files):
    for name in files.files:
        with Image.open(files.root / name) as image:
            assert (image.format, image.size) == ("JPEG", (data.WIDTH, data.HEIGHT))
    assert len({(files.root / name).read_bytes() for name in files.files}) == 3


def test_names_repeat_for_more_images(files):
    many = data.repeat(files, 7)
    assert many.files == ("0.jpg", "1.jpg", "2.jpg", "0.jpg", "1.jpg", "2.jpg", "0.jpg")
    assert len(many.labels) == 7


def test_decoding_in_this_process(session, files, tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "before"))
    monkeypatch.setattr(data, "time", SimpleNamespace(perf_counter=iter([10.0, 12.0]).__next__))
    current = session("data")
    with data._own_cache(tmp_path / "cache"):
        assert data._decoding(current, files, processes=0, images=4) == 2.0
    [row] = current.findings.rows
    assert (row.value, row.unit, row.settings["images"]) == (2.0, "images/s", 4)
    # The images that were decoded.
    [entry] = [path for path in (tmp_path / "cache" / "images").iterdir() if path.is_dir()]
    assert (entry / "train.npy").stat().st_size > 4 * 3 * data.DECODED**2
    assert os.environ["KDBENCH_CACHE"] == str(tmp_path / "before")


def test_streaming(session, files, monkeypatch):
    monkeypatch.setattr(data, "BATCH_SIZE", 2)
    monkeypatch.setattr(data, "STREAMED", 32)
    current = session("data")
    current.budget.until = lambda share: lambda: True
    data._streaming(current, replace(files, workers=0))
    [row] = current.findings.rows
    assert (row.name, row.n, row.settings["side"]) == ("streaming", 1, 32)
    assert row.value > 0


def test_augmentation(session, tiny, monkeypatch):
    """Three batches of an epoch of two."""
    tiny.n_train = 128
    current = session("data", 0.01)
    monkeypatch.setattr(current, "world", lambda: tiny)
    monkeypatch.setattr(data, "repeated", lambda action, *_: [2.0 for _ in range(3) if len(action().images) == 64])
    data._augmentation(current)
    assert [row.settings["augmentation"] for row in current.findings.rows] == list(data.AUGMENTATIONS)
    assert {(row.value, row.n) for row in current.findings.rows} == {(64 / 2.0, 3)}


def test_without_time_all_is_left_out(session, clock, monkeypatch):
    monkeypatch.setattr(data, "FILES", 1)
    current = session("data", 1.0, clock)
    clock.now += 2
    data.measure(current)
    assert current.findings.rows == []
    names = [entry.name for entry in current.findings.left_out]
    assert names == ["augmentation"] * len(data.AUGMENTATIONS) + ["decoding", "decoding", "streaming"]
