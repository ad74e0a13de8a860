"""One colour and one marker per method, the same in all plots and tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdbench.suite.schema import BASELINES

# The hues of Okabe and Ito's palette, readable with colour blindness (https://jfly.uni-koeln.de/color/), without black
# (used for kd) and yellow. Four are darker, so that each has a contrast of 3:1 with the light and the dark page.
PALETTE = ("#0072b2", "#d55e00", "#00946b", "#c0609a", "#2b94d0", "#a97a00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"
NEUTRAL = "#808080"


@dataclass(frozen=True)
class Style:
    """A colour (``#rrggbb``) and a marker in matplotlib's notation."""

    colour: str
    marker: str


def styles(methods: Mapping[str, str], baselines: Sequence[str] = BASELINES) -> dict[str, Style]:
    """A style for each label; ``methods``: the method's name by label, in the suite's order.

    The first of the baselines is grey, as are all labels of its method, and the second is black. With 6 colours
    and 7 markers, the next 42 labels have distinct combinations, and consecutive labels differ in both.
    """
    chosen: dict[str, Style] = {}
    others = 0
    for label, method in methods.items():
        if baselines[0] in (label, method):
            chosen[label] = Style(NEUTRAL, "o")
        elif label in baselines[1:2]:
            chosen[label] = Style(INK, "s")
        else:
            chosen[label] = Style(PALETTE[others % len(PALETTE)], MARKERS[others % len(MARKERS)])
            others += 1
    return chosen
