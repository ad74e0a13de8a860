"""Every method that comes with kdbench keeps the contract, but for what it announces."""

from __future__ import annotations

import pytest

from kdbench.testing import Status, examine
from kdbench.testing.targets import find

MEMBERS = [{"name": name} for name in ("crd", "ft", "ab", "deit", "vid")]
EXAMINEES = find("kdbench").examinees

EXPECTED_FAILURES = {
    "cc": {"batch-order"},
    "crd": {"state"},
    "crd+kd": {"state"},
    "kd/easytransfer-mse": {"batch-growth"},
    "kdsvd": {"host-sync"},
    "combine": {"state"},  # as it combines crd here
}


@pytest.mark.parametrize("examinee", EXAMINEES, ids=lambda examinee: examinee.name)
def test_a_method(examinee, registry):
    assert_sound(examine(examinee, registry))


def test_a_combination_of_methods_with_stages_memories_and_heads(registry):
    [examinee] = find("combine", {"methods": MEMBERS}).examinees
    assert_sound(examine(examinee, registry))


def assert_sound(report):
    assert report.having(Status.FAILED) == []
    expected = {result.check for result in report.having(Status.EXPECTED_FAILURE)}
    assert expected == EXPECTED_FAILURES.get(report.name, set())
    # Most questions have a meaning for every method.
    assert len(report.having(Status.SKIPPED)) <= 2


def test_only_combine_requires_settings():
    found = find("kdbench")
    assert found.not_checked.keys() == {"combine"}
    assert len(found.examinees) >= 36
