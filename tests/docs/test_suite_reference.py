"""The page on suite files is what the schema says, and `kdbench describe` prints the same."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest

from kdbench import cli
from kdbench.discovery import discover
from kdbench.docs import suite_page
from kdbench.suite.tables import shipped


def test_the_page_is_current(page):
    assert page("suite-reference.md") == suite_page(discover()), (
        "python -m kdbench.docs suite > docs/suite-reference.md"
    )


def test_the_page_says_what_a_key_means(page):
    text = page("suite-reference.md")
    assert "| `num_ops` | `2` | int > 0 and <= 100 |" in text
    assert "| `betas` | `[0.9, 0.999]` | tuple[float, float] |" in text
    assert "| `momentum` | `0.9` | float >= 0 and < 1 | For `sgd`. |" in text
    assert "| `epochs` | required | int > 0 | Passes over the training images, in the main stage. |" in text
    assert '| `optimizer` | `"sgd"` | name or table | Its name in `kdbench list optimizers`' in text
    assert "| `extends` | none | string | A suite's name or file that this one changes" in text


def test_every_key_of_every_shipped_suite_is_on_the_page(page):
    text = page("suite-reference.md")
    for path in shipped().values():
        tables = tomllib.loads(path.read_text())
        for key in [*tables, *tables.get("recipe", {})]:
            assert f"| `{key}` |" in text, key
        for step in tables.get("recipe", {}).get("augmentation", ()):
            section = text.partition(f"### `{step['name']}`\n")[2].partition("\n### ")[0]
            assert all(f"| `{key}` |" in section for key in step if key != "name"), step


def test_no_key_is_without_a_meaning(page):
    rows = [line for line in page("suite-reference.md").splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row for row in rows if row.endswith("|  |")] == []


@pytest.fixture
def describe(monkeypatch, capsys):
    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdbench", "describe", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return go


@pytest.mark.parametrize(
    ("name", "kind", "key", "default", "kind_of_value"),
    [
        ("recipe", "table of a suite", "batch_size", 64, "int > 0"),
        ("pairs", "table of a suite", "teacher", "(required)", "string"),
        ("teachers", "table of a suite", "expected_top1", None, "float in 0..100"),
        ("data", "table of a suite", "train_limit", None, "int > 0"),
        ("suite", "table of a suite", "seeds", "(required)", "list of int >= 0 and < 2^63"),
    ],
)
def test_describe_knows_the_keys_of_a_suite(describe, name, kind, key, default, kind_of_value):
    code, out, err = describe(name, "--json")
    rows = json.loads(out)
    # A section of the report is called "pairs", too.
    row = rows[0] if isinstance(rows, list) else rows
    assert (code, err, row["kind"], row["name"]) == (0, "", kind, name)
    assert row["keys"][key]["default"] == default
    assert row["keys"][key]["type"] == kind_of_value
    assert row["keys"][key]["description"]


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("crop", "augmentation", {"padding": {"default": 4, "type": "int > 0"}}),
        ("cosine", "schedule", {"min_lr": {"default": 0.0, "type": "float >= 0"}}),
        ("flip", "augmentation", {"p": {"default": 0.5, "type": "float in 0..1"}}),
    ],
)
def test_describe_knows_the_parts_of_a_recipe(describe, name, kind, settings):
    code, out, err = describe(name, "--json")
    row = json.loads(out)
    assert (code, err, row["kind"], row["name"], row["settings"]) == (0, "", kind, name, settings)
    assert row["summary"]


def test_described_keys_are_printed_with_their_meaning(describe):
    code, out, _ = describe("data")
    assert code == 0
    assert "train_limit = null  (int > 0): Use this many training images" in out


def test_a_misspelt_table_is_suggested(describe):
    code, _, err = describe("recip")
    assert (code, err) == (2, "kdbench: nothing on offer is called 'recip'; did you mean 'recipe'?\n")
