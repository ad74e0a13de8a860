"""What is tried of a method: its own ranges, those of the suite, and always the suite's own value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.discovery import discover, searches_of
from kdbench.errors import PluginError, SuiteError
from kdbench.hookspecs import MethodSpec
from kdbench.opening import open_suite
from kdbench.search import Search
from kdbench.tune.space import Space, _with_value, spaces


def spaces_of(path: Path, *globs: str) -> dict[str, Space]:
    opened = open_suite(path)
    return {space.label: space for space in spaces(opened, opened.suite.pairs[0], 0, globs)}


def test_the_learning_rate_is_tuned_for_every_method(write: Callable[..., Path]) -> None:
    found = spaces_of(write("none", "kd", "pkt"))
    assert {label: list(space.searches) for label, space in found.items()} == {
        "none": ["lr_factor"],
        "kd": ["lr_factor", "temperature", "kd_weight"],
        "pkt": ["lr_factor", "pkt_weight"],
    }
    assert found["pkt"].searches["pkt_weight"] == Search(low=3000.0, high=300_000.0, log=True)
    assert [space.configurations(7) for space in found.values()] == [7, 7, 7]
    assert list(spaces_of(write("none", "kd", "pkt"), "k*")) == ["kd"]


def test_the_suite_changes_ranges_and_its_own_value_is_always_among_them(write: Callable[..., Path]) -> None:
    more = """temperature = 20.0
[tune.kd]
ce_weight = { choices = [0.5, 1.0] }
kd_weight = { low = 1, high = 2 }
[tune]
lr_factor = { choices = [1.0] }
"""
    space = spaces_of(write("none", "kd", more=more))["kd"]
    assert dict(space.searches) == {
        "temperature": Search(low=1.0, high=20.0, log=True),
        "kd_weight": Search(low=0.9, high=2),
        "ce_weight": Search(choices=(0.1, 0.5, 1.0)),
    }
    assert dict(space.default) == {"temperature": 20.0, "kd_weight": 0.9, "ce_weight": 0.1}


def test_a_weight_that_the_suite_sets_to_zero_stays_zero(write: Callable[..., Path]) -> None:
    assert list(spaces_of(write("kd", more="kd_weight = 0.0\n"))["kd"].searches) == ["lr_factor", "temperature"]
    more = "kd_weight = 0.0\n[tune.kd]\nkd_weight = { low = 0.1, high = 1.0, log = true }\n"
    path = write("kd", more=more)
    with pytest.raises(SuiteError) as error:
        spaces_of(path)
    assert str(error.value) == (
        f"{path}: tune.kd.kd_weight: the suite's value 0.0 cannot be in a logarithmic range; remove log = true"
    )


@pytest.mark.parametrize(
    ("search", "value", "problem"),
    [
        (Search(low=1, high=2), True, "the suite's value True is not a number; give choices"),
        (Search(low=1, high=2), "l1", "the suite's value 'l1' is not a number; give choices"),
        (Search(choices=(1, 2)), [1], "the suite's value [1] cannot be one of choices; set another one in the suite"),
    ],
)
def test_nok_a_value_of_another_kind(search: Search, value: object, problem: str) -> None:
    assert _with_value(search, value) == (search, problem)


def test_nothing_to_tune(write: Callable[..., Path]) -> None:
    space = spaces_of(write("none", more="[tune]\nlr_factor = { choices = [1.0] }\n"))["none"]
    assert (dict(space.searches), space.note, space.configurations(9)) == ({}, "nothing to tune", 1)


def test_a_method_that_cannot_read_the_pair_is_left_out_with_the_reason(write: Callable[..., Path]) -> None:
    space = spaces_of(write("none", "fitnet", more="stage = 9\n"))["fitnet"]
    assert space.configurations(9) == 0
    assert "stage9" in space.note


def test_every_built_in_range_is_of_a_setting_and_contains_the_default() -> None:
    tuned = 0
    for offer in discover().methods:
        for key, search in searches_of(offer).items():
            default = offer.declared.settings[key].default
            assert search.low is not None, offer.spec.name
            assert search.bounds[0] <= default <= search.bounds[1], (offer.spec.name, key, default)
            tuned += 1
    assert tuned > 30


def test_a_range_of_an_unknown_setting_is_refused() -> None:
    registry = discover()
    offer = registry.method("kd")
    wrong = MethodSpec("kd", offer.spec.target, search={"temperatur": Search(low=1, high=2)})
    with pytest.raises(PluginError) as error:
        searches_of(type(offer)(wrong, offer.provider))
    assert str(error.value).endswith("search: 'temperatur' is not a setting; did you mean 'temperature'?")
