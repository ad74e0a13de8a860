from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kdbench.report.resolution import Resolution, of_row, resolution

NAN = float("nan")


@pytest.mark.parametrize(("mean", "resolved", "expected"), [
    (1.0, True, Resolution.BETTER),
    (-1.0, True, Resolution.WORSE),
    (1.0, False, Resolution.NOT_RESOLVED),
    (0.0, False, Resolution.NOT_RESOLVED),
    (1.0, None, Resolution.NO_INTERVAL),
    (1.0, pd.NA, Resolution.NO_INTERVAL),
    (1.0, NAN, Resolution.NO_INTERVAL),
    (np.float64(-1.0), np.True_, Resolution.WORSE),
    (np.float64(-1.0), np.False_, Resolution.NOT_RESOLVED),
    (None, True, None),
    (NAN, pd.NA, None),
])  # fmt: skip
def test_the_state_of_a_difference(mean: float | None, resolved: bool | None, expected: Resolution | None) -> None:
    assert resolution(mean, resolved) is expected
    assert of_row({"gain": mean, "gain_resolved": resolved}, "gain") is expected


def test_each_state_has_its_own_mark_and_words() -> None:
    assert len({state.mark for state in Resolution}) == len({state.meaning for state in Resolution}) == 4
    assert [state.css for state in Resolution] == ["up", "down", "unresolved", "unresolved"]
