from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kdbench.data.base import Split
from kdbench.data.digits import Digits
from kdbench.errors import DataError


def test_holds_every_digit_once() -> None:
    arrays = Digits().load()
    assert isinstance(arrays.train, Split)
    assert isinstance(arrays.test, Split)
    ours = np.concatenate([arrays.train.images, arrays.test.images]).reshape(-1, 64)
    labels = np.concatenate([arrays.train.labels, arrays.test.labels])
    bunch = load_digits()
    # 0..16 times 255/16, to the nearest integer (there are no halves but at 8, which numpy rounds to even).
    levels = np.array([0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255])
    theirs = levels[bunch.data.astype(int)]
    assert sorted(zip(map(bytes, ours), labels, strict=True)) == sorted(
        zip(map(bytes, theirs.astype(np.uint8)), bunch.target, strict=True)
    )


def test_facts_are_what_is_loaded() -> None:
    facts, arrays = Digits().facts(), Digits().load()
    assert isinstance(arrays.train, Split)
    assert arrays.train.images.shape == (facts.n_train, *facts.image_shape)
    assert arrays.test.labels.shape == (facts.n_test,)
    assert facts.classes == len(arrays.class_names) == len(set(arrays.train.labels.tolist()))
    pixels = arrays.train.images / 255
    np.testing.assert_allclose(facts.mean, [pixels.mean()], atol=1e-5)
    np.testing.assert_allclose(facts.std, [pixels.std()], atol=1e-5)


def test_the_test_split_is_stratified_and_fixed() -> None:
    arrays = Digits().load()
    shares = np.bincount(load_digits().target) * 500 / 1797
    assert (np.abs(np.bincount(arrays.test.labels) - shares) < 1).all()
    assert arrays.fingerprint == Digits().load().fingerprint == Digits().facts().content


def test_other_digits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = load_digits(return_X_y=True)
    values[1000, 30] += 1
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y: (values, labels))
    with pytest.raises(DataError) as error:
        Digits().load()
    assert str(error.value) == "scikit-learn's digits are not the published ones; reinstall scikit-learn"


def test_facts_load_nothing_heavy() -> None:
    code = (
        "import sys; from kdbench.data.builtin import kdbench_datasets; from kdbench.data.digits import Digits; "
        "kdbench_datasets(); Digits().facts(); sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
