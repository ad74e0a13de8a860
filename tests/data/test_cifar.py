from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets

from kdbench.data.base import Split
from kdbench.data.cifar import Cifar10, Cifar100
from kdbench.errors import DataError


@dataclass
class Written:
    """A small data set in the original file format: where it lies, and what is in it."""

    root: Path
    data: type[Cifar10] | type[Cifar100]
    folder: Path
    archive: Path
    train: tuple[np.ndarray, list[int]]
    test: tuple[np.ndarray, list[int]]
    names: list[str]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Both the folder and its archive, with torchvision's checksums replaced by theirs."""
    hundred = request.param == "CIFAR100"
    original = getattr(torchvision.datasets, request.param)
    root, random = tmp_path / "root", np.random.default_rng(0)
    folder = root / original.base_folder
    folder.mkdir(parents=True)
    classes = 100 if hundred else 10
    key = "fine_labels" if hundred else "labels"

    def write(name: str, count: int) -> tuple[np.ndarray, list[int]]:
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = random.integers(0, classes, count).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
        return pixels.reshape(-1, 3, 32, 32), labels

    parts = [write(name, 4) for name, _ in original.train_list]
    train = (np.concatenate([pixels for pixels, _ in parts]), [label for _, labels in parts for label in labels])
    test = write(original.test_list[0][0], 3)
    names = [f"class {number}" for number in range(classes)]
    meta = {**original.meta}
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: names}))

    archive = root / original.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, original.base_folder)
    meta["md5"] = md5(folder / meta["filename"])
    monkeypatch.setattr(original, "meta", meta)
    monkeypatch.setattr(original, "tgz_md5", md5(archive))
    for attribute in ("train_list", "test_list"):
        checksums = [[name, md5(folder / name)] for name, _ in getattr(original, attribute)]
        monkeypatch.setattr(original, attribute, checksums)
    # No test reaches the network: nothing listens there.
    monkeypatch.setattr(original, "url", f"http://127.0.0.1:9/{original.filename}")
    return Written(root, Cifar100 if hundred else Cifar10, folder, archive, train, test, names)


def assert_read(written: Written, **settings: Any) -> None:
    arrays = written.data(**settings).load()
    assert isinstance(arrays.train, Split)
    assert isinstance(arrays.test, Split)
    np.testing.assert_array_equal(arrays.train.images, written.train[0])
    np.testing.assert_array_equal(arrays.test.images, written.test[0])
    assert arrays.train.labels.tolist() == written.train[1]
    assert arrays.test.labels.tolist() == written.test[1]
    assert arrays.class_names == tuple(written.names)
    assert arrays.train.images.flags.c_contiguous
    assert arrays.train.labels.dtype == np.int64


def refused(written: Written, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        written.data(**{"root": str(written.root), **settings}).load()
    return str(error.value)


def test_reads_the_original_files(written: Written) -> None:
    written.archive.unlink()
    assert_read(written, root=str(written.root), download=False)


def test_unpacks_the_archive_where_that_is_there(written: Written) -> None:
    shutil.rmtree(written.folder)
    assert_read(written, root=str(written.root), download=False)


def test_repairs_a_half_unpacked_folder_from_the_archive(written: Written) -> None:
    os.truncate(next(written.folder.glob("*test*")), 10)
    assert_read(written, root=str(written.root))


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_a_foreign_pickle_is_not_executed(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (written.root / getattr(torchvision.datasets, written.data.torchvision_class).filename).unlink()
    path = next(written.folder.glob("*test*"))
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match="is truncated or damaged: its MD5 checksum is"):
        written.data(root=str(written.root)).load()
    assert not (tmp_path / "executed").exists()


def test_the_fingerprint_follows_the_pixels(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written.data(root=str(written.root)).load().fingerprint
    assert written.data(root=str(written.root)).load().fingerprint == first
    original = getattr(torchvision.datasets, written.data.torchvision_class)
    (name, _), *others = original.train_list
    content = pickle.loads((written.folder / name).read_bytes())
    content["data"][0, 0] ^= 1
    (written.folder / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(original, "train_list", [[name, md5(written.folder / name)], *others])
    assert written.data(root=str(written.root)).load().fingerprint != first


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}", folder
        web.shutdown()
        thread.join()


def serve(written: Written, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the archive to the server, and leave nothing in the root."""
    address, folder = server
    shutil.move(written.archive, folder)
    shutil.rmtree(written.folder)
    original = getattr(torchvision.datasets, written.data.torchvision_class)
    monkeypatch.setattr(original, "url", f"{address}/{written.archive.name}")


def test_downloads_on_first_use_into_the_cache_folder(
    written: Written, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    serve(written, server, monkeypatch)
    assert_read(written)
    (server[1] / written.archive.name).unlink()
    assert_read(written)
    assert (cache / "downloads" / written.folder.name).is_dir()


def test_a_download_with_another_checksum_is_refused(
    written: Written, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(written, server, monkeypatch)
    served = server[1] / written.archive.name
    os.truncate(served, served.stat().st_size // 2)
    message = refused(written)
    assert f"{server[0]}/{written.archive.name}: the downloaded file is not the data set: " in message
    assert f"its MD5 checksum is {md5(served)} ({served.stat().st_size:,} bytes), expected " in message
    assert not written.archive.exists()


def test_no_network(written: Written) -> None:
    shutil.rmtree(written.root)
    message = refused(written)
    assert message.startswith(f"http://127.0.0.1:9/{written.archive.name}: cannot be downloaded: ")
    assert message.endswith(
        f"; without a network, download it on another machine and copy it into {written.root} (data.root)"
    )


def test_a_truncated_archive_is_named(written: Written) -> None:
    shutil.rmtree(written.folder)
    whole = md5(written.archive)
    os.truncate(written.archive, 100)
    assert refused(written) == (
        f"{written.archive}: is truncated or damaged: its MD5 checksum is {md5(written.archive)} (100 bytes), "
        f"expected {whole}; delete it and download http://127.0.0.1:9/{written.archive.name} again"
    )


def test_a_damaged_file_is_named(written: Written) -> None:
    written.archive.unlink()
    meta = next(written.folder.glob("*meta"))
    meta.write_bytes(b"x")
    message = refused(written)
    assert message.startswith(f"{meta}: is truncated or damaged: its MD5 checksum is 9dd4e461268c8034f5c8564e155c67a6")
    assert message.endswith(f"; delete {written.folder}, and it will be downloaded again")
    meta.unlink()
    assert refused(written).startswith(f"{meta}: is missing; delete ")


def test_a_wrong_root_without_download(written: Written, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    assert refused(written, root=str(wrong), download=False) == (
        f"data.root: {wrong}: no such folder; set it to the folder that contains {written.folder.name}"
    )
    assert not wrong.exists()
    wrong.mkdir()
    assert refused(written, root=str(wrong), download=False) == (
        f"{wrong}: contains neither {written.folder.name} nor {written.archive.name}; "
        "set data.root, or data.download = true"
    )


@pytest.mark.parametrize(("data", "classes"), [(Cifar10, 10), (Cifar100, 100)])
def test_facts_are_the_published_ones(data: type[Cifar10] | type[Cifar100], classes: int) -> None:
    facts = data().facts()
    assert (facts.classes, facts.image_shape, facts.n_train, facts.n_test) == (classes, (3, 32, 32), 50_000, 10_000)
    if classes == 100:  # the statistics of the CRD study
        assert (facts.mean, facts.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
