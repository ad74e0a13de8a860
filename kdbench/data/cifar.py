"""CIFAR-10 and CIFAR-100 in their original files, read and downloaded by torchvision.

Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf: 50,000 training and 10,000
test images of 32x32 pixels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kdbench.data.base import Arrays, DataFacts, Split
from kdbench.data.cache import cache_folder, exclusive
from kdbench.errors import DataError

Channels = tuple[float, float, float]


class _Cifar:
    """The common part of both.

    ``root``: the folder that contains torchvision's folder (``cifar-10-batches-py``) or the archive; by default
    one in the cache folder. ``download``: download the archive (170 MB) if neither exists.
    """

    classes: ClassVar[int]
    torchvision_class: ClassVar[str]
    content: ClassVar[str]
    """MD5 of the published archive. Every file is compared with its published MD5 before it is used."""
    mean: ClassVar[Channels]
    std: ClassVar[Channels]

    def __init__(self, *, root: str | None = None, download: bool = True) -> None:
        self.root = Path(root).expanduser() if root else None
        self.download = download

    def facts(self) -> DataFacts:
        """The published sizes, and the usual channel statistics for normalisation."""
        return DataFacts(
            classes=self.classes,
            image_shape=(3, 32, 32),
            n_train=50_000,
            n_test=10_000,
            mean=self.mean,
            std=self.std,
            content=self.content,
        )

    def load(self) -> Arrays:
        """Read the original files; download them first if they are missing."""
        import torchvision.datasets

        cifar = getattr(torchvision.datasets, self.torchvision_class)
        root = self.root or cache_folder() / "downloads"
        if _damaged_file(cifar, root):
            if not root.is_dir() and not self.download:
                raise DataError(
                    f"data.root: {root}: no such folder; set it to the folder that contains {cifar.base_folder}"
                )
            try:
                with exclusive(root / cifar.base_folder):
                    _provide(cifar, root, self.download)
            except OSError as error:
                raise DataError(f"data.root: {root}: cannot be written: {error.strerror or error}") from error
        train, test = (cifar(root, train=train) for train in (True, False))
        splits = [
            Split(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, np.int64))
            for part in (train, test)
        ]
        checksum = hashlib.sha256()
        for split in splits:
            checksum.update(split.images.data)
            checksum.update(split.labels.data)
        return Arrays(
            train=splits[0],
            test=splits[1],
            fingerprint=checksum.hexdigest(),
            class_names=tuple(train.classes),
        )


class Cifar10(_Cifar):
    """CIFAR-10: ten classes of 6,000 images."""

    classes = 10
    torchvision_class = "CIFAR10"
    content = "c58f30108f718f92721af3b95e74349a"
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)


class Cifar100(_Cifar):
    """CIFAR-100: a hundred classes of 600 images, the usual benchmark of the field."""

    classes = 100
    torchvision_class = "CIFAR100"
    content = "eb9058c3a382ffc7106e4002c42a8d85"
    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)


def _provide(cifar: Any, root: Path, download: bool) -> None:
    """Provide the complete original files in ``root``: found, unpacked or downloaded.

    torchvision alone would download a damaged archive again without a message, or would not name the corrupt file.
    """
    folder, archive = root / cifar.base_folder, root / cifar.filename
    damage = _damaged_file(cifar, root)
    if damage is None:
        return
    if archive.is_file():
        if archive_damage := _damage(archive, cifar.tgz_md5):
            raise DataError(f"{archive_damage}; delete it and download {cifar.url} again")
        _unpack(cifar, root)
    elif folder.is_dir():
        raise DataError(f"{damage}; delete {folder}, and it will be downloaded again")
    elif download:
        _download(cifar, root)
    else:
        raise DataError(
            f"{root}: contains neither {cifar.base_folder} nor {cifar.filename}; set data.root, or data.download = true"
        )


def _damaged_file(cifar: Any, root: Path) -> str | None:
    """The problem of the first damaged file of the data set; None if there is none."""
    checksums = [*cifar.train_list, *cifar.test_list, [cifar.meta["filename"], cifar.meta["md5"]]]
    files = ((root / cifar.base_folder / name, md5) for name, md5 in checksums)
    return next((damage for path, md5 in files if (damage := _damage(path, md5))), None)


def _damage(path: Path, md5: str) -> str | None:
    """The problem of a file; None if it has the checksum."""
    if not path.is_file():
        return f"{path}: is missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found == md5:
        return None
    size = path.stat().st_size
    return f"{path}: is truncated or damaged: its MD5 checksum is {found} ({size:,} bytes), expected {md5}"


def _download(cifar: Any, root: Path) -> None:
    from torchvision.datasets.utils import download_url

    # Under another name until it is complete: a killed process leaves no partial archive.
    unfinished = cifar.filename + ".unfinished"
    try:
        (root / unfinished).unlink(missing_ok=True)
        download_url(cifar.url, str(root), unfinished, cifar.tgz_md5)
    except RuntimeError as error:
        damage = _damage(root / unfinished, cifar.tgz_md5)
        raise DataError(f"{cifar.url}: the downloaded file is not the data set: {damage}") from error
    except OSError as error:
        raise DataError(
            f"{cifar.url}: cannot be downloaded: {error}; without a network, download it on another machine "
            f"and copy it into {root} (data.root)"
        ) from error
    (root / unfinished).replace(root / cifar.filename)
    _unpack(cifar, root)


def _unpack(cifar: Any, root: Path) -> None:
    from torchvision.datasets.utils import extract_archive

    try:
        extract_archive(str(root / cifar.filename), str(root))
    except OSError as error:
        raise DataError(f"{root / cifar.filename}: cannot be unpacked: {error}") from error
