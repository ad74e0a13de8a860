"""The page on methods is what the registry says, and what the registry says is so."""

from __future__ import annotations

import re

import pytest

from kdbench.discovery import discover
from kdbench.docs import first_party, methods_page


@pytest.fixture(scope="module")
def generated():
    return methods_page(discover())


def section(text, name):
    return text.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]


def test_the_page_is_current(generated, page):
    assert page("methods.md") == generated, "python -m kdbench.docs > docs/methods.md"


def test_every_first_party_method_has_a_row_and_a_section(page):
    names = [offer.spec.name for offer in discover().methods if offer.provider.distribution == "kdbench"]
    text = page("methods.md")
    assert re.findall(r"^\| \[`(.*?)`\]", text, re.MULTILINE) == names
    assert re.findall(r"^## `(.*?)`$", text, re.MULTILINE) == names
    assert f"The {len(names)} losses" in text


def test_other_distributions_are_left_out(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from kdbench.method import Method\n\n\nclass Mine(Method):\n    pass\n")
    registry = discover([file])
    assert registry.method("mine")
    assert "mine" not in {offer.spec.name for offer in first_party(registry)}


def test_settings_with_defaults_and_ranges(page):
    assert "| `temperature` | `4.0` | float > 0 |" in section(page("methods.md"), "kd")
    assert "| `temperature` | `3.0` | float > 0 |" in section(page("methods.md"), "kd/keras")
    assert "| `methods` | required |" in section(page("methods.md"), "combine")


def test_adapters_and_stages(page):
    """The sizes are those of the paper's layers for resnet56 and resnet20: 129,312 and 64,896 parameters."""
    text = section(page("methods.md"), "ft")
    assert "- Adapters: `paraphraser` (129,312 parameters), `translator` (64,896 parameters)" in text
    assert "- Stage before the main one: `paraphraser`, 30 epochs; reads `stage-1`; trains `paraphraser`" in text


def test_expected_failures_are_listed(page):
    assert "- Fails the check `batch-order` by design: each image is compared" in section(page("methods.md"), "cc")
