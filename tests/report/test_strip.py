from __future__ import annotations

import pytest

from kdbench.report.strip import MARGIN, WIDTH, limits, strip


def test_limits_hold_all_that_is_near() -> None:
    low, high = limits([70.0, 71.0, 72.0])
    assert low < 70 < 72 < high
    assert high - low == pytest.approx(2 * 1.12)


def test_limits_leave_out_what_collapsed_unless_asked_to() -> None:
    values = [70.0, 70.5, 71.0, 71.5, 72.0, 10.0]
    assert limits(values)[0] > 65
    assert limits(values, always=[10.0])[0] < 10


def test_limits_of_nothing_and_of_one() -> None:
    assert limits([]) == (0.0, 100.0)
    low, high = limits([70.0])
    assert low < 70 < high


def test_positions() -> None:
    drawn = strip([70.0, 75.0, 80.0], 75.0, 2.5, 70.0, (70.0, 80.0))
    inner = WIDTH - 2 * MARGIN
    assert drawn.dots == (MARGIN, WIDTH / 2, WIDTH - MARGIN)
    assert (drawn.mean, drawn.baseline, drawn.beyond) == (WIDTH / 2, MARGIN, "")
    assert (drawn.low, drawn.high) == (WIDTH / 2 - inner / 4, WIDTH / 2 + inner / 4)


def test_what_lies_outside_is_pointed_to() -> None:
    drawn = strip([10.0], 10.0, None, 10.0, (70.0, 80.0))
    assert (drawn.dots, drawn.beyond, drawn.baseline, drawn.low) == ((), "left", None, None)
    assert strip([], None, None, None, (70.0, 80.0)).mean is None
