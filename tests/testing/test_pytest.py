"""``method_checks`` as others use it: in a test file of their own."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

LOSSES = """
import torch.nn.functional as F

from kdbench.method import Method
from kdbench.testing import method_checks


class Mine(Method):
    expected_failures = {"batch-growth": "it sums"}

    def forward(self, student, teacher, batch):
        return {"sum": ((student.logits - teacher.logits.detach()).square().sum(), 1.0)}


class Attached(Method):
    def forward(self, student, teacher, batch):
        return {"mse": (F.mse_loss(student.logits, teacher.logits), 1.0)}

"""


@pytest.fixture
def run(pytester, monkeypatch):
    # Reasons are cut to the terminal's width.
    monkeypatch.setenv("COLUMNS", "300")

    def run(text, *arguments):
        pytester.makepyfile(LOSSES + text)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-v", *arguments)

    return run


def test_passes_skips_and_expected_failures(run):
    result = run("test_mine = method_checks(Mine, pairs=['resnet20:resnet8'])")
    outcomes = result.parseoutcomes()
    assert (outcomes["skipped"], outcomes["xfailed"]) == (2, 1)
    assert "failed" not in outcomes
    result.stdout.fnmatch_lines(["*::test_mine[[]batch-growth] XFAIL (it sums (seen: *"])
    result.stdout.fnmatch_lines(["*::test_mine[[]labels] SKIPPED (the loss does not depend on the labels)*"])


def test_a_failure_says_what_was_asked_and_seen(run):
    result = run("test_attached = method_checks(Attached, pairs=['resnet20:resnet8'])", "-k", "teacher")
    result.assert_outcomes(failed=1, deselected=27)
    result.stdout.fnmatch_lines(
        ["Does no gradient reach the teacher? main: a gradient reaches the teacher's logits; detach them"]
    )


def test_a_registered_method_with_settings(run):
    result = run("test_kd = method_checks('kd', settings={'temperature': 2.0})", "-k", "terms")
    result.assert_outcomes(passed=1, deselected=27)


def test_an_unknown_method_is_reported_during_collection(run):
    result = run("test_kd = method_checks('kdd')")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no method, model or package is called 'kdd'; did you mean *"])


def test_a_model(run):
    result = run("from kdbench.testing import model_checks\n\ntest_net = model_checks('resnet8')", "-k", "signs")
    result.assert_outcomes(passed=1, deselected=13)


def test_a_method_is_no_model(run):
    result = run("from kdbench.testing import model_checks\n\ntest_net = model_checks('kd')")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*kd: contains no model"])
