"""The tutorial, as a reader would follow it: every command is run, every file written, every output compared."""

from __future__ import annotations

import re
import textwrap
import tomllib

import pytest
from torch import nn

from kdbench.method import DataSignature, Incompatible, Method, Signature, TapSignature
from kdbench.testing import CHECKS

PAGE = "writing-a-method.md"


def test_the_tutorial_from_the_idea_to_the_leaderboard(blocks, reader):
    for block in blocks(PAGE):
        reader.follow(block)
    for part in ("new-method", "pip install -e .", "check", "pytest", "plan", "run suites", "cat reports", "describe"):
        assert any(part in command for command in reader.commands), part
    board = (reader.folder / "reports" / "focus" / "leaderboard.md").read_text()
    assert re.search(r"^\| \d \| focus \| \d+\.\d+ ± ", board, re.MULTILINE)


def test_every_check_is_explained_and_no_other(page):
    table = page(PAGE).partition("| check | what goes wrong | instead |")[2]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE) == [check.name for check in CHECKS]


def test_the_suite_snippets_are_valid(blocks):
    tables = [tomllib.loads(block.text) for block in blocks(PAGE) if block.language == "toml"]
    assert tables == [{"methods": [{"name": "focus", "label": "focus, T = 1", "temperature": 1.0}]}]


def snippets(blocks) -> dict[str, object]:
    """What the page's Python blocks that belong into a class define there."""
    names: dict[str, object] = {"nn": nn}
    for block in blocks(PAGE):
        if block.language == "python" and not block.note:
            exec(textwrap.dedent(block.text), names)
    return names


def test_the_adapter_snippet_builds_an_adapter(blocks):
    method = Method()
    student, teacher = (
        Signature(name, "resnet", 10, {"stage1": TapSignature((channels, 4, 4), nonnegative=True)})
        for name, channels in (("small", 4), ("large", 8))
    )
    snippets(blocks)["setup"](method, student, teacher, DataSignature(10, 100))
    assert tuple(method.adapter.weight.shape) == (8, 4, 1, 1)
    with pytest.raises(Incompatible, match="focus needs a last stage map; bare has none"):
        snippets(blocks)["setup"](method, Signature("bare", "mlp", 10, {}), teacher, DataSignature(10, 100))


def test_the_expected_failure_snippet_names_a_check(blocks):
    assert snippets(blocks)["expected_failures"].keys() <= {check.name for check in CHECKS}
