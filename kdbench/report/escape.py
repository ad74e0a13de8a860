"""Escapes untrusted text in CSV and Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Prefixes that spreadsheets read as a formula (https://owasp.org/www-community/attacks/CSV_Injection).
# The last four are the wide forms of = + - @, which some spreadsheets read the same way.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

_ALWAYS = re.compile(r"[\\`*|~$]")
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_AFTER_BRACKET = re.compile(r"\](?=[(\[:])")
# GitHub makes links of bare addresses: in "http://" and "www." a backslash prevents that.
_BARE_LINK = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
_LINE_START = re.compile(r"^(?:[#+=\-\[]|\d+(?=[.)](?:\s|$)))")


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before each text that a spreadsheet would read as a formula."""
    import pandas as pd

    texts = [name for name in frame.columns if pd.api.types.is_string_dtype(frame[name].dtype)]
    return frame.assign(**{name: [_harmless(value) for value in frame[name]] for name in texts})


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def csv(frame: pd.DataFrame) -> str:
    """The table as CSV, numbers to six digits."""
    text: str = without_formulas(frame).to_csv(index=False, float_format="%.6g")
    return text


def markdown(text: object) -> str:
    """Escape Markdown: no tables, links, mathematics, HTML or emphasis.

    >>> markdown("a|b"), markdown("<b>"), markdown("wrn_40_2"), markdown("_x_")
    ('a\\\\|b', '&lt;b&gt;', 'wrn_40_2', '\\\\_x\\\\_')
    """
    line = " ".join(str(text).split())
    line = _ALWAYS.sub(lambda found: f"\\{found[0]}", line)
    line = _UNDERSCORE.sub(r"\\_", line)
    line = _AFTER_BRACKET.sub(r"\\]", line)
    line = _BARE_LINK.sub(r"\\", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINE_START.sub(_escaped_start, line)


def _escaped_start(found: re.Match[str]) -> str:
    # A digit cannot be escaped; the point or bracket that makes it a list can, and comes next.
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"


def code(text: object) -> str:
    """Text as Markdown code; it may contain backticks.

    >>> code("a"), code("a`b")
    ('`a`', '`` a`b ``')
    """
    line = " ".join(str(text).split())
    runs = re.findall(r"`+", line)
    if not runs:
        return f"`{line}`"
    fence = "`" * (max(map(len, runs)) + 1)
    return f"{fence} {line} {fence}"
