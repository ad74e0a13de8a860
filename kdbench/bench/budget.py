"""Time for each part of a measurement: a share of what is left, so that an early part cannot use up the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping


class Budget:
    """Divides ``seconds`` among parts. What a part does not use goes to the following ones."""

    def __init__(
        self, seconds: float, shares: Mapping[str, float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """``shares`` of the parts in their order; only their ratios matter."""
        self._clock = clock
        self._end = clock() + seconds
        self._waiting = dict(shares)
        self._until = -math.inf

    def begin(self, part: str) -> None:
        """Start a part: it gets its share of the time that is left to it and to the parts after it."""
        share = self._waiting.pop(part)
        now = self._clock()
        left = max(0.0, self._end - now)
        self._until = now + left * share / (share + sum(self._waiting.values()))

    @property
    def left(self) -> float:
        """Seconds that the current part still has; 0 if its time is over."""
        return max(0.0, self._until - self._clock())

    def allows(self, seconds: float) -> bool:
        """Whether there is time for something that takes about ``seconds``."""
        left = self.left
        return left > 0 and seconds <= left

    def until(self, share: float) -> Callable[[], bool]:
        """Tells whether ``share`` of the time that the part has now is over."""
        end = self._clock() + share * self.left
        return lambda: self._clock() >= end
