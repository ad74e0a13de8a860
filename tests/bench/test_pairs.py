from __future__ import annotations

import pytest

from kdbench.bench import pairs
from kdbench.bench.world import VARIANTS, Variant, World
from kdbench.opening import open_suite


@pytest.fixture(scope="module")
def suite():
    given = {
        "name": "small",
        "question": "How fast?",
        "seeds": [0],
        "data": {"name": "digits"},
        "recipe": {"epochs": 1, "batch_size": 16, "lr": 0.2, "augmentation": [{"name": "flip"}]},
        "pairs": [
            {"teacher": "resnet8", "student": "resnet8", "recipe": {"lr": 0.1}},
            {"teacher": "resnet8", "student": "deit_micro", "methods": {"kd": {"temperature": 2.0}}},
        ],
        "methods": [{"name": "none"}, {"name": "kd"}, {"name": "fsp"}],
    }
    return open_suite(given).suite


def test_the_shipped_suite_has_thirteen_pairs():
    suite = open_suite(pairs.SUITE).suite
    assert len(suite.pairs) == 13
    assert set(pairs.FEW) < {method.name for method in suite.methods}


def test_every_pair_with_few_and_with_all_methods(session, tiny, suite):
    current = session("pairs")
    variants = [*VARIANTS, Variant("clipped", recipe={"clip_grad_norm": 1.0}), Variant("graphs", ("cuda",))]
    current.budget.until = lambda share: lambda: True
    pairs.measure(current, variants, suite, tiny)
    found = [row.settings for row in current.findings.rows]
    assert [(settings["pair"], settings["methods"], settings["variant"]) for settings in found] == [
        (pair, methods, variant)
        for methods in (["none", "kd"], ["none", "kd", "fsp"])
        for pair in ("resnet8:resnet8", "resnet8:deit_micro")
        for variant in ("eager", "clipped")
    ]  # fmt: skip
    assert all(row.unit == "steps/s" and row.n == 1 and row.value > 0 for row in current.findings.rows)
    # FSP needs maps of equal sizes: the rest of the cohort is measured without it.
    assert {(entry.settings["pair"], entry.settings["method"]) for entry in current.findings.left_out} == {
        ("resnet8:deit_micro", "fsp")
    }
    assert not current.findings.failed


def test_recipes_and_settings_are_those_of_the_pair(session, tiny, suite, monkeypatch):
    made = []
    original = World.learner

    def learner(self, identifier, student, teacher, method, recipe, *, settings, variant):
        made.append((student, method, recipe.lr, dict(settings)))
        return original(self, identifier, student, teacher, method, recipe, settings=settings, variant=variant)

    monkeypatch.setattr(World, "learner", learner)
    current = session("pairs")
    current.budget.until = lambda share: lambda: True
    pairs.measure(current, VARIANTS, suite.model_copy(update={"methods": suite.methods[1:2]}), tiny)
    assert made[:2] == [("resnet8", "kd", 0.1, {}), ("deit_micro", "kd", 0.2, {"temperature": 2.0})]


def test_a_pair_that_fails_and_one_without_time(session, tiny, suite, clock, monkeypatch):
    current = session("pairs", 10.0, clock)

    def teacher(self, name):
        clock.now += 20
        raise RuntimeError("cannot be built")

    monkeypatch.setattr(World, "teacher", teacher)
    pairs.measure(current, VARIANTS, suite, tiny)
    first, *others = current.findings.left_out
    assert first.failed
    assert first.reason.startswith("RuntimeError: cannot be built")
    assert len(others) == 3
    assert {(entry.failed, entry.reason) for entry in others} == {(False, pairs.NO_TIME)}
