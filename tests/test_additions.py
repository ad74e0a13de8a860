"""What a suite may add: names that are free, functions that can be imported."""

from __future__ import annotations

import pytest

from kdbench import additions
from kdbench.discovery import Registry, discover
from kdbench.report import frame, leaderboard
from kdbench.results.planned import taken_names

PLUGIN = """
from kdbench.hookspecs import FigureSpec, MetricSpec, SectionSpec, hookimpl

number = 3


def gap(logits, labels):
    return logits.mean()


@hookimpl
def kdbench_metrics():
    names = ["gap", "seconds", "pair", "term_ce", "nll", "two words", "wide"]
    specs = [MetricSpec(name, f"{__name__}:gap", digits=99 if name == "wide" else 3) for name in names]
    return [*specs, MetricSpec("number", f"{__name__}:number"), MetricSpec("gone", f"{__name__}:gone")]


@hookimpl
def kdbench_report_sections():
    return [SectionSpec("mine", f"{__name__}:gap"), SectionSpec("verdict", f"{__name__}:gap")]


@hookimpl
def kdbench_figures():
    return [FigureSpec("../mine", f"{__name__}:gap")]
"""
TAKEN = "is the name of a field or column of results; rename it"
CHARACTERS = "must be named by letters, digits, '_', '.' and '-'; rename it"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(PLUGIN)
    return discover([path])


@pytest.mark.parametrize(("key", "name"), [("metrics", "gap"), ("metrics", "mine.py:gap"), ("sections", "mine")])
def test_what_can_be_used(registry: Registry, key: str, name: str) -> None:
    assert additions.problems(registry, key, name) == []


@pytest.mark.parametrize(
    ("key", "name", "problem"),
    [
        ("metrics", "top1", "'top1' is measured of every student; remove it"),
        ("metrics", "seconds", f"metric 'seconds' of mine.py: {TAKEN}"),
        ("metrics", "pair", f"metric 'pair' of mine.py: {TAKEN}"),
        ("metrics", "term_ce", f"metric 'term_ce' of mine.py: {TAKEN}"),
        ("metrics", "mine.py:nll", "metric 'nll' of mine.py: has the name of one of kdbench's own; rename it"),
        ("metrics", "two words", f"metric 'two words' of mine.py: {CHARACTERS}"),
        ("metrics", "wide", "metric 'wide' of mine.py: digits: Input should be less than or equal to 12"),
        ("sections", "costs", "'costs' is in every report; remove it"),
        (
            "sections",
            "mine.py:verdict",
            "section 'verdict' of mine.py: has the name of one of kdbench's own; rename it",
        ),
        ("figures", "accuracy", "'accuracy' is in every report; remove it"),
        ("figures", "../mine", f"figure '../mine' of mine.py: {CHARACTERS}"),
    ],
)
def test_what_cannot(registry: Registry, key: str, name: str, problem: str) -> None:
    assert additions.problems(registry, key, name) == [problem]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gapp", "metric 'gapp' is not registered; did you mean 'gap'?"),
        ("number", ":number is no function"),
        ("gone", "'gone' of mine.py failed to import: "),
    ],
)
def test_a_metric_that_is_not_there(registry: Registry, name: str, words: str) -> None:
    (problem,) = additions.problems(registry, "metrics", name)
    assert words in problem


def test_no_metric_takes_the_name_of_a_column() -> None:
    assert set(frame.columns()) <= taken_names()
    means = {name.removesuffix("_mean") for name in leaderboard.columns() if name.endswith("_mean")}
    assert means <= taken_names()
