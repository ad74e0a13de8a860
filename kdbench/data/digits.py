"""The digits that scikit-learn bundles: 1,797 real handwritten digits of 8x8 pixels; nothing to download.

Alpaydin and Kaynak (1998), https://doi.org/10.24432/C50P49, preprocessed by NIST's routines: each pixel
counts the inked pixels of a 4x4 block, 0 to 16.
"""

from __future__ import annotations

import hashlib

import numpy as np

from kdbench.data.base import Arrays, DataFacts, Split
from kdbench.data.splits import stratified
from kdbench.errors import DataError

N_TEST = 500
CONTENT = "30f2299c66ca74120495ff2f0bf45d697149c52d54b8397a206a2dac8c58e54e"
"""SHA-256 of images, labels and split."""


class Digits:
    """1,297 training and 500 test images in ten classes, one grey channel; a fixed, stratified split."""

    def facts(self) -> DataFacts:
        """Sizes and channel statistics, which are constants."""
        return DataFacts(
            classes=10,
            image_shape=(1, 8, 8),
            n_train=1297,
            n_test=N_TEST,
            mean=(0.30476,),
            std=(0.37582,),
            content=CONTENT,
        )

    def load(self) -> Arrays:
        """Read the bundled file; values 0..16 become 0..255."""
        from sklearn.datasets import load_digits

        values, labels = load_digits(return_X_y=True)
        images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        everything = Split(images, labels.astype(np.int64))
        test = stratified(everything.labels, N_TEST, seed=0, purpose="digits test split")
        train = np.setdiff1d(np.arange(len(labels)), test)
        fingerprint = hashlib.sha256(images.tobytes() + everything.labels.tobytes() + test.tobytes()).hexdigest()
        if fingerprint != CONTENT:
            raise DataError("scikit-learn's digits are not the published ones; reinstall scikit-learn")
        return Arrays(
            train=everything.take(train),
            test=everything.take(test),
            fingerprint=fingerprint,
            class_names=tuple("0123456789"),
        )
