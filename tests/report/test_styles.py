from __future__ import annotations

from itertools import pairwise

from kdbench.report.render import MARKERS as DRAWN
from kdbench.report.styles import INK, MARKERS, NEUTRAL, styles


def test_forty_methods_differ() -> None:
    methods = {"none": "none", "kd": "kd", **{f"method{i}": "x" for i in range(42)}}
    found = styles(methods)
    assert len(set(found.values())) == 44
    assert found["none"].colour == NEUTRAL
    assert found["kd"].colour == INK


def test_neighbours_differ_in_colour_and_marker() -> None:
    found = list(styles({f"method{i}": "x" for i in range(20)}).values())
    assert all(a.colour != b.colour and a.marker != b.marker for a, b in pairwise(found))


def test_tables_can_draw_every_marker() -> None:
    assert set(DRAWN) == set(MARKERS)
