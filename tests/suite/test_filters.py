"""Which trials are meant: the same for planned trials, records and rows of a table."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from kdbench.errors import SuiteError
from kdbench.results import PlannedTrial
from kdbench.suite.filters import Filters
from kdbench.suite.schema import Suite

ROWS = [
    {"teacher": teacher, "student": "resnet8", "method": method, "label": label, "seed": seed}
    for teacher in ("resnet20", "resnet56")
    for method, label in (("none", "none"), ("kd", "kd"), ("kd", "hot"))
    for seed in (0, 1)
]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (Filters(), 12),
        (Filters(methods=("kd",)), 8),
        (Filters(methods=("h*", "none")), 8),
        (Filters(pairs=("resnet56:resnet8",)), 6),
        (Filters(seeds=(1,)), 6),
        (Filters(("hot",), ("resnet20:resnet8",), (0, 1)), 2),
        (Filters(methods=("K*",)), 0),
    ],
)
def test_records_and_rows_match_alike(filters: Filters, count: int) -> None:
    records = [PlannedTrial(id=str(number), **row) for number, row in enumerate(ROWS)]
    table = pd.DataFrame([{**row, "pair": f"{row['teacher']}:{row['student']}"} for row in ROWS])
    matching = [filters.match(record) for record in records]
    assert sum(matching) == count
    assert [filters.match(row) for row in table.itertuples()] == matching


def test_what_no_trial_answers_to_is_refused(open_small: Callable[..., Suite]) -> None:
    suite = open_small()
    Filters(("n*", "kd"), ("resnet20:resnet8",), (1,)).check(suite)
    with pytest.raises(SuiteError) as error:
        Filters(("kdd",), ("resnet20:resnet9",), (7,)).check(suite)
    assert list(error.value.problems) == [
        "--method kdd: no method of suite small; did you mean 'kd'?",
        "--pair resnet20:resnet9: no pair of suite small; did you mean 'resnet20:resnet8'?",
        "--seed 7: no seed of suite small; its seeds: 0, 1",
    ]


def test_in_words() -> None:
    filters = Filters(("kd", "r*"), ("a:b",), (0,))
    assert filters.describe() == "--method kd --method r* --pair a:b --seed 0"
    assert filters.without_methods().describe() == "--pair a:b --seed 0"
    assert Filters().describe() == ""
