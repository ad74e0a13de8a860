from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(
    r"(?:<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the comment before it, which tells readers nothing and tests what it is for."""

    language: str
    text: str
    note: str


@pytest.fixture(scope="session")
def page() -> Callable[[str], str]:
    return lambda name: (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def blocks(page: Callable[[str], str]) -> Callable[[str], list[Block]]:
    """The fenced blocks of a page, in order."""
    return lambda name: [
        Block(match["language"], match["text"], match["note"] or "") for match in FENCE.finditer(page(name))
    ]
