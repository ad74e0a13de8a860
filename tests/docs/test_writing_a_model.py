"""The models guide, as a reader would follow it: every command is run, every file written, every output compared."""

from __future__ import annotations

import re

from kdbench.testing import MODEL_CHECKS

PAGE = "writing-a-model.md"


def test_the_guide_from_the_file_to_the_results(blocks, reader):
    for block in blocks(PAGE):
        reader.follow(block)
    for part in ("check plainnet.py | grep failed", "check plainnet.py", "plan plain.toml", "run plain.toml"):
        assert any(command.endswith(part) for command in reader.commands), part
    board = (reader.folder / "reports" / "plain" / "leaderboard.md").read_text()
    assert "| at |" in board


def test_every_check_is_explained_and_no_other(page):
    table = page(PAGE).partition("| check | what goes wrong | instead |")[2]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE) == [check.name for check in MODEL_CHECKS]
