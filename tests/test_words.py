"""Numbers, times and values in words."""

from __future__ import annotations

import pytest

from kdbench.words import one_line, plural, shown, time_span


def test_plural() -> None:
    assert [plural(number, "epoch") for number in (0, 1, 2, 1200)] == [
        "0 epochs",
        "1 epoch",
        "2 epochs",
        "1,200 epochs",
    ]
    assert plural(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a second"),
        (1.2, "1 second"),
        (2.736, "3 seconds"),
        (89, "89 seconds"),
        (90, "1.5 minutes"),
        (600, "10 minutes"),
        (3600, "60 minutes"),
        (5400, "1.5 hours"),
        (86400, "24 hours"),
        (1.9e6, "22 days"),
        (1e8, "1157 days"),
    ],
)
def test_time_span(seconds: float, words: str) -> None:
    assert time_span(seconds) == words


def test_long_values_lose_their_middle() -> None:
    assert shown("a") == "'a'"
    assert shown("a" * 98) == repr("a" * 98)
    assert shown("a" * 60 + "b" * 60) == f"'{'a' * 48}..{'b' * 48}'"


def test_one_line() -> None:
    assert one_line("a [red] é漢\n\x1b[31m\x7f\u202e") == "a [red] é漢\\n\\x1b[31m\\x7f\\u202e"
    assert one_line("a" * 1001) == "a" * 998 + ".."
