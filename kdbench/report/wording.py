"""Formats of numbers and lists, the same on the page, in Markdown and in plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

from kdbench.words import plural as plural  # re-exported for templates and the other modules

if TYPE_CHECKING:
    from kdbench.report.stats import Estimate

DASH = "–"
MINUS = "−"


def missing(value: float | None) -> bool:
    """None, NaN or ``<NA>``."""
    # numpy's and pandas's numbers are Real, <NA> is not.
    return not isinstance(value, Real) or value != value


def number(value: float | None, digits: int = 2) -> str:
    """A number with a minus sign (U+2212); a dash if it is missing.

    >>> number(-1.234), number(None)
    ('−1.23', '–')
    """
    if missing(value):
        return DASH
    assert value is not None
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign.

    >>> signed(0.5), signed(-0.5), signed(0.001)
    ('+0.50', '−0.50', '0.00')
    """
    if missing(value):
        return DASH
    assert value is not None
    text = number(abs(value), digits)
    if not text.strip("0."):
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def probability(value: float | None) -> str:
    """A p-value; very small ones as a bound.

    >>> probability(0.0312), probability(0.00004)
    ('0.031', '< 0.001')
    """
    if missing(value):
        return DASH
    assert value is not None
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def mean_std(mean: float | None, std: float | None, digits: int = 2) -> str:
    """``71.20 ± 0.31``; without a standard deviation, only the mean."""
    if missing(mean):
        return DASH
    return number(mean, digits) if missing(std) else f"{number(mean, digits)} ± {number(std, digits)}"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """``[+0.10, +0.90]``; empty if there is no interval."""
    if missing(low) or missing(high):
        return ""
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def gain(difference: Estimate, digits: int = 2) -> str:
    """``+0.50 [+0.10, +0.90], n=3``."""
    if difference.mean is None:
        return DASH
    bounds = interval(difference.low, difference.high, digits)
    return f"{signed(difference.mean, digits)}{' ' + bounds if bounds else ''}, n={difference.n}"


def duration(seconds: float | None) -> str:
    """Seconds in a readable unit.

    >>> duration(0.25), duration(95), duration(7200)
    ('0.2 s', '1.6 min', '2.0 h')
    """
    if missing(seconds):
        return DASH
    assert seconds is not None
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    if missing(seconds):
        return DASH
    assert seconds is not None
    return f"{seconds * 1e3:.3g} ms"


def count(value: float | None) -> str:
    """A whole number with thin spaces: 1 234 567 (for parameters, images and bytes)."""
    return DASH if missing(value) else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def mebibytes(value: float | None) -> str:
    """Bytes as MiB."""
    if missing(value):
        return DASH
    assert value is not None
    return f"{value / 2**20:,.0f} MiB".replace(",", "\N{NARROW NO-BREAK SPACE}")


def listing(words: Sequence[str], limit: int | None = None) -> str:
    """``a, b and c``, or ``a, b and 4 more``."""
    if not words:
        return ""
    if limit is not None and len(words) > limit + 1:
        return f"{', '.join(words[:limit])} and {len(words) - limit} more"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def pair(teacher: str, student: str) -> str:
    """``teacher → student``."""
    return f"{teacher} → {student}"
