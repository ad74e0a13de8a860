from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from kdbench.report import wording
from kdbench.report.stats import Estimate


@pytest.mark.parametrize("nothing", [None, math.nan, np.nan, pd.NA, "", "72"])
def test_what_is_missing_is_a_dash(nothing: float | None) -> None:
    assert wording.number(nothing) == "–"
    assert wording.signed(nothing) == "–"
    assert wording.duration(nothing) == "–"
    assert wording.count(nothing) == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(1.005, "+1.00"), (-0.126, "−0.13"), (0.001, "0.00"), (-0.001, "0.00"), (math.inf, "+∞")]
)
def test_signed(value: float, text: str) -> None:
    assert wording.signed(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (89.0, "89.0 s"), (95.0, "1.6 min"), (5399.0, "90.0 min"), (7200.0, "2.0 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_numpy_numbers_are_numbers() -> None:
    assert wording.count(np.int64(278324)) == "278\N{NARROW NO-BREAK SPACE}324"
    assert wording.number(np.float64(71.236)) == "71.24"


def test_spread_interval_and_gain() -> None:
    assert wording.mean_std(71.2, 0.31) == "71.20 ± 0.31"
    assert wording.mean_std(71.2, None) == "71.20"
    assert wording.interval(-0.1, 0.9) == "[−0.10, +0.90]"
    assert wording.interval(None, None) == ""
    assert wording.gain(Estimate(3, 0.5, 0.1, 0.1, 0.9)) == "+0.50 [+0.10, +0.90], n=3"
    assert wording.gain(Estimate(1, 0.5)) == "+0.50, n=1"
    assert wording.gain(Estimate(0)) == "–"


def test_listing() -> None:
    assert wording.listing([]) == ""
    assert wording.listing(["a"]) == "a"
    assert wording.listing(["a", "b", "c"]) == "a, b and c"
    assert wording.listing(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert wording.listing(["a", "b", "c"], 2) == "a, b and c"
