"""Which test images the final network of a training classifies correctly: ``correct.npy``, one bit for each image.

With it, two students can be compared image by image, which their accuracies do not allow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import ResultsError
from kdbench.results.files import Check, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdbench.results.folder import AnyFolder

NAME = "correct.npy"


def write_correct(path: Path, correct: NDArray[np.bool_], check: Check = None) -> None:
    """Write ``correct`` (N,), as bytes of eight images each (:func:`numpy.packbits`), atomically.

    ``check`` is called right before an old file is replaced. Raises :class:`~kdbench.errors.ResultsError`.
    """
    import numpy as np

    def fill(temporary: Path) -> None:
        # An open file: np.save would change the file's name.
        with temporary.open("wb") as file:
            np.save(file, np.packbits(correct))

    write_atomically(path, fill, check)


def read_correct(folder: AnyFolder) -> NDArray[np.bool_] | None:
    """Whether the network of a finished training classifies each test image correctly (top-1): (n_test,) booleans.

    The images have the order of the data set, after ``data.test_limit``. The network is the one whose weights were
    stored: of the last epoch, or of the best one on the validation split. None if the training is not finished, has
    diverged or is damaged, and for results of earlier versions, which do not have the file.

    Raises:
        ResultsError: the file is not what kdbench writes, or does not give the accuracy in ``result.json``.
    """
    import numpy as np

    result = folder.result
    if result is None or NAME not in result.files:
        return None
    path = folder.path / NAME
    try:
        packed = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read: {error}") from error
    images = result.data.n_test
    if packed.dtype != np.uint8 or packed.shape != (-(-images // 8),):
        raise ResultsError(f"{path}: has {packed.dtype} of shape {packed.shape}, which are not {images} bits")
    correct = np.unpackbits(packed, count=images).astype(bool)
    if 100 * int(correct.sum()) / images != result.top1:
        raise ResultsError(f"{path}: {correct.sum()} of {images} images are correct, but top1 is {result.top1}")
    return correct
