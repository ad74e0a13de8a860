"""Numbers, times and values in words; used by messages, tables and pages."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_LONGEST_VALUE = 100
_LONGEST_LINE = 1000


def plural(number: int, noun: str, many: str = "") -> str:
    """A number and its noun.

    >>> plural(1, "epoch"), plural(2, "epoch"), plural(1200, "entry", "entries")
    ('1 epoch', '2 epochs', '1,200 entries')
    """
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def listed(names: Sequence[str], most: int) -> str:
    """The first ``most`` names, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def time_span(seconds: float) -> str:
    """A time to two digits, in the largest unit of which it is at least one and a half.

    >>> time_span(2.736), time_span(100), time_span(5400), time_span(22 * 86400), time_span(0.2)
    ('3 seconds', '1.7 minutes', '1.5 hours', '22 days', 'less than a second')
    """
    if seconds < 1:
        return "less than a second"
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= 1.5 * size), (1.0, "second"))
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 10 or size == 1 else f"{value:.2g} {unit}"


def shown(value: object) -> str:
    """A value as Python writes it, the middle left out where it is long.

    >>> shown("a" * 200)[:10], len(shown("a" * 200))
    ("'aaaaaaaaa", 100)
    """
    text = repr(value)
    half = (_LONGEST_VALUE - 2) // 2
    return text if len(text) <= _LONGEST_VALUE else f"{text[:half]}..{text[-half:]}"


def one_line(text: str) -> str:
    r"""Text from a file, safe to print: control characters escaped, and cut where it is very long.

    >>> one_line("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return escaped if len(escaped) <= _LONGEST_LINE else f"{escaped[: _LONGEST_LINE - 2]}.."
