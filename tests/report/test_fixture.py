"""The results folder that these tests write by hand has no key that a real run does not write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.results import TEACHERS
from kdbench.run import run_suite

SUITE = """
name = "tiny"
question = "?"
seeds = [0]
data = { name = "digits", train_limit = 64, test_limit = 20 }
recipe = { epochs = 1, batch_size = 32 }
pairs = [{ teacher = "resnet8", student = "resnet8" }]
methods = [{ name = "none" }]
"""
# Keys that a result has for some data sets and settings only, or that are a method's own.
OPTIONAL = {"result.json: top5", "trial.json: settings.weight", "epochs.jsonl: terms.ce"}


def keys(content: Any, above: str = "") -> set[str]:
    if not isinstance(content, dict):
        return {above}
    return {key for name, value in content.items() for key in keys(value, f"{above}.{name}".lstrip("."))}


def written(path: Path) -> set[str]:
    lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    return {f"{path.name}: {key}" for line in lines for key in keys(json.loads(line))}


def test_every_key_is_one_that_the_engine_writes(runs: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(SUITE)
    real = run_suite(file, output=tmp_path / "real", report_dir=tmp_path / "reports", observers=[], device="cpu").folder
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0)
    hand = suite.write()
    for ours, theirs in ((hand.path, real.path), (hand.output / TEACHERS, real.output / TEACHERS)):
        for path in ours.rglob("*.json*"):
            (counterpart,) = theirs.rglob(path.name)
            invented = written(path) - written(counterpart) - OPTIONAL
            assert not invented, path.name
