"""The values of a setting that tuning tries."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kdbench.search import Search

NOK: list[tuple[dict[str, Any], str]] = [
    ({}, "needs low and high, or choices"),
    ({"low": 1}, "needs low and high, or choices"),
    ({"low": 2, "high": 2}, "low must be below high, got low = 2 and high = 2"),
    ({"low": 0, "high": 2, "log": True}, "low must be positive where log = true, got 0"),
    ({"low": 0, "choices": (1,)}, "give either choices, or low and high, not both"),
    ({"choices": (1, 1)}, "each of choices once, got [1, 1]"),
]


@pytest.mark.parametrize(("given", "problem"), NOK)
def test_nok(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as error:
        Search(**given)
    assert str(error.value.errors()[0]["ctx"]["error"]) == problem


def test_a_range_around_a_default_is_symmetric_on_a_logarithmic_scale() -> None:
    search = Search.around(0.5, 10)
    assert search == Search(low=0.05, high=5.0, log=True)
    assert (search.bounds, str(search)) == ((0.05, 5.0), "0.05 to 5, log")


@pytest.mark.parametrize("search", [Search(low=1, high=2), Search(low=1, high=2, log=True), Search(choices=("a", 2))])
def test_its_table_reads_back(search: Search) -> None:
    assert Search.model_validate(search.to_toml()) == search
