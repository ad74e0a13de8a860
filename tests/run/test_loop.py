"""What a process does with its claims after an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdbench.errors import ResultsError
from kdbench.run.loop import Loop
from kdbench.run.work import Part


class Claim:
    def __init__(self) -> None:
        self.released = False

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize(
    ("error", "released"),
    [
        (ResultsError("the disk is full"), True),
        (KeyboardInterrupt(), True),
        # As after a crash, so that it counts as a death, and is not tried for ever.
        (RuntimeError("no memory for the feed"), False),
    ],
)
def test_claims_after_an_error(error, released):
    def train(part, add):
        raise error

    loop = Loop.__new__(Loop)
    loop.students = SimpleNamespace(train=train)
    claim = Claim()
    with pytest.raises(type(error)):
        loop._train(Part(None, [], {"a": claim}), SimpleNamespace(add=None))
    assert claim.released is released
