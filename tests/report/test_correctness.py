"""McNemar's test, by hand: of the images that one classifier alone gets right, how many are whose."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pytest

from kdbench.report.correctness import mcnemar


def pair(only_a: int, only_b: int, both: int = 7, neither: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two classifiers, by how many images are right for one alone, for both, and for neither."""
    rows = [(True, False)] * only_a + [(False, True)] * only_b + [(True, True)] * both + [(False, False)] * neither
    a, b = np.array(rows, dtype=bool).T
    return a, b


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (7, 1, 2 * (1 + 8) / 256),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (12, 4, 2 * sum(comb(16, k) for k in range(5)) / 2**16),
    ],
)
def test_values_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(*pair(only_a, only_b)) == pytest.approx(p, rel=1e-12)
    # Whoever comes first, and however many images tell them not apart.
    assert mcnemar(*pair(only_b, only_a, both=1000, neither=0)) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([True, False], [True], r"must have one shape \(N,\), got \(2,\) and \(1,\)"),
        ([[True]], [[True]], r"must have one shape \(N,\), got \(1, 1\) and \(1, 1\)"),
        ([True], [1], "must be booleans, got bool and int64"),
    ],
)
def test_nok(a: Any, b: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^correct_a and correct_b {message}$"):
        mcnemar(a, b)
