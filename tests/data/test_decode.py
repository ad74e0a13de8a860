from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from kdbench.data import decode
from kdbench.data.base import FileSplit, Split
from kdbench.data.content import content_of
from kdbench.data.decode import decoded, image_size, read_image
from kdbench.errors import DataError

WriteImage = Callable[..., np.ndarray]


def file_split(root: Path, names: list[str]) -> FileSplit:
    return FileSplit(root, tuple(names), np.arange(len(names), dtype=np.int64) % 2)


@pytest.fixture
def files(tmp_path: Path, write_image: WriteImage) -> tuple[FileSplit, FileSplit, np.ndarray]:
    """Seven training images, three test images, and the pixels of all (10, 3, 6, 5)."""
    root = tmp_path / "images"
    names = [f"{number}.png" for number in range(10)]
    pixels = [write_image(root / name, (6, 5), number) for number, name in enumerate(names)]
    everything = np.stack(pixels).transpose(0, 3, 1, 2)
    return file_split(root, names[:7]), file_split(root, names[7:]), everything


def decode_files(train: FileSplit, test: FileSplit, **settings: object) -> decode.Arrays:
    settings = {"workers": 0} | settings
    content = content_of(train, test)
    return decoded("set", train, test, content=content, class_names=("a", "b"), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_decodes_every_image_into_its_row(
    files: tuple[FileSplit, FileSplit, np.ndarray], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test, pixels = files
    monkeypatch.setattr(decode, "_CHUNK_FILES", 2)
    arrays = decode_files(train, test, workers=workers)
    assert isinstance(arrays.train, Split)
    assert isinstance(arrays.test, Split)
    np.testing.assert_array_equal(arrays.train.images, pixels[:7])
    np.testing.assert_array_equal(arrays.test.images, pixels[7:])
    np.testing.assert_array_equal(arrays.train.labels, train.labels)
    np.testing.assert_array_equal(arrays.test.labels, test.labels)
    assert isinstance(arrays.train.images, np.memmap)
    assert arrays.class_names == ("a", "b")
    assert arrays.corrupt == 0
    assert arrays.mean is not None
    assert arrays.std is not None
    np.testing.assert_allclose(arrays.mean, (pixels[:7] / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(arrays.std, (pixels[:7] / 255).std((0, 2, 3)), rtol=1e-9)


def test_decodes_once(files: tuple[FileSplit, FileSplit, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, pixels = files
    first = decode_files(train, test)
    monkeypatch.setattr(decode, "read_image", None)
    again = decode_files(train, test)
    assert isinstance(again.train, Split)
    np.testing.assert_array_equal(again.train.images, pixels[:7])
    assert (again.fingerprint, again.mean, again.std) == (first.fingerprint, first.mean, first.std)


def test_the_cache_is_found_again_where_the_images_moved(
    files: tuple[FileSplit, FileSplit, np.ndarray], tmp_path: Path, cache: Path
) -> None:
    train, test, _ = files
    fingerprint = decode_files(train, test).fingerprint
    moved = tmp_path / "moved"
    shutil.move(train.root, moved)
    arrays = decode_files(file_split(moved, list(train.files)), file_split(moved, list(test.files)))
    assert arrays.fingerprint == fingerprint
    assert len([path for path in (cache / "images").iterdir() if path.is_dir()]) == 1


def test_changed_files_are_decoded_again(
    files: tuple[FileSplit, FileSplit, np.ndarray], write_image: WriteImage
) -> None:
    train, test, _ = files
    fingerprint = decode_files(train, test).fingerprint
    Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(train.root / train.files[3])
    arrays = decode_files(train, test)
    assert isinstance(arrays.train, Split)
    assert not arrays.train.images[3].any()
    assert arrays.fingerprint != fingerprint


def test_a_file_changed_in_place_at_equal_size_is_decoded_again(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "0.bmp")
    write_image(tmp_path / "1.bmp", seed=1)
    files = file_split(tmp_path, ["0.bmp", "1.bmp"])
    fingerprint = decode_files(files, files).fingerprint
    size = (tmp_path / "1.bmp").stat().st_size
    pixels = write_image(tmp_path / "1.bmp", seed=2)
    assert (tmp_path / "1.bmp").stat().st_size == size
    arrays = decode_files(files, files)
    assert isinstance(arrays.train, Split)
    np.testing.assert_array_equal(arrays.train.images[1], pixels.transpose(2, 0, 1))
    assert arrays.fingerprint != fingerprint


def test_files_that_change_while_they_are_decoded_are_an_error(
    files: tuple[FileSplit, FileSplit, np.ndarray],
    write_image: WriteImage,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test, _ = files
    monkeypatch.setattr(
        decode, "read_image", lambda path, size: (write_image(path, (6, 5), seed=99), read_image(path))[1]
    )
    with pytest.raises(DataError) as error:
        decode_files(train, test)
    assert str(error.value) == f"{train.root}: files changed while they were decoded; run again"
    assert [path for path in (cache / "images").iterdir() if path.is_dir()] == []


def test_writing_into_the_arrays_does_not_change_the_cache(
    files: tuple[FileSplit, FileSplit, np.ndarray],
) -> None:
    train, test, pixels = files
    arrays = decode_files(train, test)
    assert isinstance(arrays.train, Split)
    arrays.train.images[:] = 0
    again = decode_files(train, test)
    assert isinstance(again.train, Split)
    np.testing.assert_array_equal(again.train.images, pixels[:7])


@pytest.mark.parametrize("name", ["train.npy", "test.npy", "train-labels.npy", "test-labels.npy", "facts.json"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied", "removed"])
def test_a_damaged_cache_is_made_again(
    files: tuple[FileSplit, FileSplit, np.ndarray], cache: Path, name: str, how: str
) -> None:
    train, test, pixels = files
    whole = decode_files(train, test)
    [path] = (cache / "images").glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    match how:
        case "truncated":
            os.truncate(path, len(content) - 20)
        case "flipped":
            path.write_bytes(content)
        case "emptied":
            path.write_bytes(b"")
        case "removed":
            path.unlink()
    arrays = decode_files(train, test)
    assert isinstance(arrays.train, Split)
    assert isinstance(arrays.test, Split)
    np.testing.assert_array_equal(arrays.train.images, pixels[:7])
    np.testing.assert_array_equal(arrays.test.images, pixels[7:])
    np.testing.assert_array_equal(arrays.train.labels, train.labels)
    np.testing.assert_array_equal(arrays.test.labels, test.labels)
    assert (arrays.fingerprint, arrays.mean, arrays.std) == (whole.fingerprint, whole.mean, whole.std)


def damage(path: Path, kind: str) -> None:
    match kind:
        case "truncated":
            os.truncate(path, path.stat().st_size // 2)
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not an image")
        case "huge":  # Pillow refuses it with an exception that is no OSError
            path.write_bytes(b"P6 99999 99999 255\n")


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "huge"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_an_error_naming_the_file(
    files: tuple[FileSplit, FileSplit, np.ndarray], kind: str, workers: int, cache: Path
) -> None:
    train, test, _ = files
    damage(train.root / "4.png", kind)
    with pytest.raises(DataError) as error:
        decode_files(train, test, workers=workers)
    message = str(error.value)
    assert message.startswith(f"{train.root / '4.png'}: cannot be decoded: ")
    assert message.endswith('; data.on_corrupt = "skip" leaves such images out')
    assert "BytesIO" not in message
    assert [path for path in (cache / "images").iterdir() if path.is_dir()] == []


def test_all_corrupt_images_are_named_at_once(files: tuple[FileSplit, FileSplit, np.ndarray], cache: Path) -> None:
    train, test, _ = files
    for name in ("0.png", "4.png", "8.png"):  # the last one is a test image
        damage(train.root / name, "empty")
    with pytest.raises(DataError) as error:
        decode_files(train, test)
    assert str(error.value).splitlines() == [
        *(f"{train.root / name}: cannot be decoded: it is empty" for name in ("0.png", "4.png", "8.png")),
        '3 images cannot be decoded; data.on_corrupt = "skip" leaves such images out',
    ]
    assert [path for path in (cache / "images").iterdir() if path.is_dir()] == []


def test_of_very_many_corrupt_images_the_first_are_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "fine.png").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(tmp_path / "fine.png")
    names = [f"{number:02}.png" for number in range(25)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    everything = FileSplit(tmp_path, ("fine.png", *names), np.zeros(26, np.int64))
    with pytest.raises(DataError) as error:
        decode_files(everything, FileSplit(tmp_path, ("fine.png",), np.zeros(1, np.int64)))
    lines = str(error.value).splitlines()
    assert lines[:20] == [f"{tmp_path / name}: cannot be decoded: it is empty" for name in names[:20]]
    assert lines[20:] == [
        '25 images cannot be decoded, 5 of them not named here; data.on_corrupt = "skip" leaves such images out'
    ]


def test_corrupt_images_are_left_out_and_counted(
    files: tuple[FileSplit, FileSplit, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    train, test, pixels = files
    damage(train.root / "0.png", "truncated")
    damage(train.root / "4.png", "empty")
    damage(test.root / "8.png", "text")
    with caplog.at_level(logging.WARNING):
        arrays = decode_files(train, test, on_corrupt="skip")
    assert isinstance(arrays.train, Split)
    assert isinstance(arrays.test, Split)
    kept = [1, 2, 3, 5, 6]
    np.testing.assert_array_equal(arrays.train.images, pixels[kept])
    np.testing.assert_array_equal(arrays.train.labels, train.labels[kept])
    np.testing.assert_array_equal(arrays.test.images, pixels[[7, 9]])
    assert arrays.corrupt == 3
    assert arrays.mean is not None
    assert arrays.std is not None
    np.testing.assert_allclose(arrays.mean, (pixels[kept] / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(arrays.std, (pixels[kept] / 255).std((0, 2, 3)), rtol=1e-9)
    assert caplog.messages == ["set: left out 3 corrupt images: 0.png, 4.png, 8.png"]
    assert decode_files(train, test, on_corrupt="skip").corrupt == 3


def test_images_of_another_size_are_named(
    files: tuple[FileSplit, FileSplit, np.ndarray], write_image: WriteImage
) -> None:
    train, test, _ = files
    write_image(train.root / "5.png", (6, 7))
    with pytest.raises(DataError) as error:
        decode_files(train, test)
    assert str(error.value) == (
        f"{train.root / '5.png'}: is 7x6 pixels, but the first image is 5x6; set data.size to resize all images"
    )


def test_size_resizes(files: tuple[FileSplit, FileSplit, np.ndarray], write_image: WriteImage) -> None:
    train, test, _ = files
    pixels = write_image(train.root / "5.png", (30, 20), 5)
    arrays = decode_files(train, test, size=4)
    assert isinstance(arrays.train, Split)
    assert arrays.train.images.shape == (7, 3, 4, 4)
    # Bilinear with antialiasing, in two passes: weights are a triangle as wide as the reduction.
    expected = triangle(20, 4) @ (triangle(30, 4) @ pixels.reshape(30, -1)).reshape(4, 20, 3)
    np.testing.assert_allclose(arrays.train.images[5], expected.transpose(2, 0, 1), atol=1.5)


def triangle(before: int, after: int) -> np.ndarray:
    reduction = before / after
    centres = (np.arange(after) + 0.5) * reduction
    weights = np.maximum(1 - np.abs(np.arange(before) + 0.5 - centres[:, None]) / reduction, 0)
    normalized: np.ndarray = weights / weights.sum(1, keepdims=True)
    return normalized


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "CMYK"])
def test_images_of_any_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((4, 4), 255, np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 255, np.uint16))
    else:
        image = grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    read = np.asarray(read_image(path))
    assert read.shape == (4, 4, 3)
    assert (read == 255).all()


def bomb(path: Path, kind: str) -> None:
    """A small file that would decode to hundreds of megabytes."""
    match kind:
        case "large":  # above Pillow's limit for a warning
            path.write_bytes(b"P6 12000 9000 255\n")
        case "larger":  # above that for an error
            path.write_bytes(b"P6 99999 99999 255\n")
        case "text":  # a compressed comment, which is read with the header
            Image.new("RGB", (6, 5)).save(path, "PNG", pnginfo=large_comment())


def large_comment() -> PngInfo:
    info = PngInfo()
    info.add_text("comment", "x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    return info


@pytest.mark.parametrize("kind", ["large", "larger", "text"])
def test_an_image_bomb_is_a_corrupt_image(tmp_path: Path, write_image: WriteImage, kind: str) -> None:
    bomb(tmp_path / "0.png", kind)
    write_image(tmp_path / "1.png", (6, 5))
    with pytest.raises(decode.CorruptImage, match=r"0\.png: cannot be decoded: "):
        read_image(tmp_path / "0.png")
    assert image_size(file_split(tmp_path, ["0.png", "1.png"])) == (6, 5)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_a_damaged_image_is_decoded_or_corrupt(tmp_path: Path, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path / "0.png"
    Image.fromarray(pixels).save(path, form)
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    outcomes = set()
    for number in range(60):
        damaged = bytearray(whole)
        if number % 2:
            damaged = damaged[: random.integers(len(whole))]
        else:
            for place in random.integers(len(whole) if number % 4 else min(64, len(whole)), size=3):
                damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        for read in (lambda: read_image(path), lambda: image_size(file_split(tmp_path, ["0.png"]))):
            try:
                read()
                outcomes.add("decoded")
            except DataError as error:
                assert str(tmp_path) in str(error)  # noqa: PT017 - either outcome is right
                outcomes.add("corrupt")
    assert "corrupt" in outcomes


def test_without_a_home_the_remedy_is_named(
    files: tuple[FileSplit, FileSplit, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KDBENCH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    with pytest.raises(DataError) as error:
        decode_files(*files[:2])
    assert str(error.value) == "the user has no home folder for cached data; set KDBENCH_CACHE to a folder"


def test_large_jpegs_are_reduced_while_decoding(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(np.full((400, 320, 3), 100, np.uint8)).save(path)
    assert read_image(path).size == (320, 400)
    assert read_image(path, reduced_to=40).size == (40, 50)


def test_a_missing_file_is_not_corrupt(files: tuple[FileSplit, FileSplit, np.ndarray]) -> None:
    train, test, _ = files
    (train.root / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png: cannot be read: No such file or directory$"):
        decode_files(train, test, on_corrupt="skip")


def test_image_size_is_that_of_the_first_readable_image(
    files: tuple[FileSplit, FileSplit, np.ndarray], tmp_path: Path
) -> None:
    train, _, _ = files
    damage(train.root / "0.png", "empty")
    assert image_size(train) == (6, 5)
    for name in train.files:
        damage(train.root / name, "text")
    with pytest.raises(DataError, match="none of its 7 images can be decoded"):
        image_size(train)


BUILD = """
import sys, resource
from pathlib import Path
import numpy as np
from kdbench.data.base import FileSplit
from kdbench.data.content import content_of
from kdbench.data.decode import decoded
from kdbench.errors import DataError
if __name__ == "__main__":
    root, workers, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    names = tuple(sorted(path.name for path in root.iterdir()))
    files = FileSplit(root, names, np.zeros(len(names), np.int64))
    try:
        arrays = decoded("set", files, files, content=content_of(files, files), class_names=("a",), workers=workers)
        print(len(arrays.train.labels), int(arrays.train.images[-1].any()))
    except DataError as error:
        print(error)
"""


@pytest.fixture
def many(tmp_path: Path, write_image: WriteImage) -> Path:
    """A folder of 4,000 images (links to one)."""
    root = tmp_path / "many"
    write_image(root / "0.png", (32, 32))
    for number in range(1, 4000):
        os.link(root / "0.png", root / f"{number}.png")
    return root


def start(script: Path, *arguments: object) -> subprocess.Popen[str]:
    # A script and not `-c`: workers import the main module by its file.
    script.write_text(BUILD)
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for workers in /proc")
def test_a_killed_build_leaves_no_half_file_and_no_worker(many: Path, cache: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "build.py", many, 2, 0)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: list[str] = []
    while len(workers) < 2 or not list(cache.glob("images/*.unfinished/train.npy")):
        assert process.poll() is None, "the build must be under way when it is killed"
        workers = children.read_text().split()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()  # not read to its end, which workers that live on would hold open
    assert list(cache.glob("images/*/facts.json")) == []
    deadline = time.monotonic() + 20
    while left := [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
        if time.monotonic() > deadline:
            for worker in left:
                os.kill(int(worker), signal.SIGKILL)
            pytest.fail("workers outlive the process that started them")
        time.sleep(0.05)

    out, _ = start(tmp_path / "build.py", many, 0, 0).communicate()
    assert out == "4000 1\n"
    assert [path.name for path in (cache / "images").glob("*.unfinished")] == []


def test_a_full_disk_is_an_error_and_leaves_nothing(many: Path, cache: Path, tmp_path: Path) -> None:
    # A limit on the size of files fails the write as a full disk does.
    out, _ = start(tmp_path / "build.py", many, 0, 4_000_000).communicate()
    assert "cannot be written: File too large; set KDBENCH_CACHE to a folder with enough space" in out
    assert [path for path in (cache / "images").iterdir() if path.is_dir()] == []


def test_progress_is_shown_on_a_terminal_only(
    files: tuple[FileSplit, FileSplit, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test, _ = files

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    decode_files(train, test)
    assert pipe.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", terminal)
    decode_files(train, test, size=3)
    assert "decoding set" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()
