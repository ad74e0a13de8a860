from __future__ import annotations

import pytest

from kdbench.errors import KdbenchError, PluginError
from kdbench.method import Incompatible, Method
from kdbench.testing import CHECKS, Status, examine
from kdbench.testing.bench import Bench
from kdbench.testing.targets import find


class Labels(Method):
    """Nothing but labels; without a teacher."""

    needs_teacher = False

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}


class Summed(Labels):
    expected_failures = {"batch-growth": "its source sums"}  # noqa: RUF012

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits) * len(batch.labels), 1.0)}


class NoLongerSummed(Labels):
    expected_failures = {"batch-growth": "its source sums"}  # noqa: RUF012


class Misspelt(Labels):
    expected_failures = {"batch-grows": "its source sums"}  # noqa: RUF012


class TwoHeaded(Labels):
    def setup(self, student, teacher, data):
        student.require("dist_logits", "twoheaded", "a distillation head")


class Demanding(Labels):
    def setup(self, student, teacher, data):
        raise Incompatible(f"demanding needs a graph network; {student.model} is none")


class FromTransformer(Labels):
    def setup(self, student, teacher, data):
        if teacher.family != "vit":
            raise Incompatible(f"fromtransformer needs a transformer; {teacher.model} is none")


class BrokenSetup(Labels):
    def setup(self, student, teacher, data):
        raise RuntimeError("no weights to be had")


class OnlyHere(Labels):
    """Fails on the transformer alone."""

    def forward(self, student, teacher, batch):
        loss = batch.cross_entropy(student.logits)
        return {"ce": (loss * float("nan") if self.transformer else loss, 1.0)}

    def setup(self, student, teacher, data):
        self.transformer = student.family == "vit"


def results(examination):
    return {result.check: result for result in examination.results()}


def test_an_announced_failure_is_an_expected_failure(examination):
    result = results(examination(Summed))["batch-growth"]
    assert result.status is Status.EXPECTED_FAILURE
    assert result.reason.startswith("its source sums (seen: main: term 'ce' grows as B^1.00")


def test_an_announced_failure_that_passes_is_a_failure(examination):
    result = results(examination(NoLongerSummed))["batch-growth"]
    assert result.status is Status.FAILED
    assert result.reason == "expected to fail (its source sums), but it passes: remove it from expected_failures"


def test_an_announced_failure_of_no_check_is_a_failure(examination):
    result = results(examination(Misspelt))["batch-grows"]
    assert result.status is Status.FAILED
    assert result.reason == "expected_failures: no check is called 'batch-grows'; did you mean 'batch-growth'?"


def test_a_skip_is_neither_passed_nor_failed(examination):
    result = results(examination(Labels))["teacher-gradient"]
    assert (result.status, result.reason) == (Status.SKIPPED, "the method uses no teacher")


def test_unsupported_pairs_are_listed(registry):
    [examinee] = find(TwoHeaded).examinees
    report = examine(examinee, registry)
    assert report.passed
    assert list(report.tried_on) == ["resnet20:deit_micro"]
    assert report.refused == {
        "resnet20:resnet8": "twoheaded needs a distillation head; resnet8 has none",
        "wrn_16_2:resnet8": "twoheaded needs a distillation head; resnet8 has none",
    }


def test_further_pairs_are_tried_where_none_of_the_usual_is_read(registry):
    [examinee] = find(FromTransformer).examinees
    report = examine(examinee, registry)
    assert list(report.tried_on) == ["deit_micro:deit_micro"]
    assert report.passed


def test_a_method_that_reads_no_pair_fails(registry):
    [examinee] = find(Demanding).examinees
    report = examine(examinee, registry, ["resnet20:resnet8"])
    assert not report.passed
    assert {result.status for result in report.results} == {Status.FAILED}
    assert report.results[0].reason == (
        "the method supports none of the pairs (resnet20:resnet8: demanding needs a graph network; resnet8 is none); "
        "name one with --pair"
    )


def test_what_setup_raises_is_a_failure(examination):
    result = results(examination(BrokenSetup))["terms"]
    assert (result.status, result.reason) == (Status.FAILED, "RuntimeError: no weights to be had")


def test_a_failure_on_one_pair_is_a_failure_and_names_it(examination):
    result = results(examination(OnlyHere, "resnet20:resnet8", "resnet20:deit_micro"))["terms"]
    assert (result.status, result.reason) == (Status.FAILED, "resnet20:deit_micro: main: term 'ce' is nan")


def test_the_report_for_scripts(registry):
    [examinee] = find(Summed).examinees
    report = examine(examinee, registry, ["resnet20:resnet8"]).to_json()
    assert report["method"] == "summed"
    assert report["passed"] is True
    assert report["pairs"] == ["resnet20:resnet8"]
    assert [row["check"] for row in report["checks"]] == [check.name for check in CHECKS]
    assert set(report["checks"][0]) == {"check", "question", "status", "reason"}
    assert {row["status"] for row in report["checks"]} == {"passed", "skipped", "expected failure"}


def test_a_pair_may_name_networks_with_colons(registry):
    bench = Bench.named("torchvision:resnet18:resnet8", registry)
    assert (bench.teacher_name, bench.student_name) == ("torchvision:resnet18", "resnet8")


@pytest.mark.parametrize("pair", ["resnet20", "a:b:c"])
def test_nok_pair_without_two_networks(pair, registry):
    with pytest.raises(KdbenchError, match=f"--pair {pair}: must be TEACHER:STUDENT"):
        Bench.named(pair, registry)


def test_nok_pair_with_an_unknown_network(registry):
    with pytest.raises(PluginError, match="model 'resnet21' is not registered; did you mean 'resnet"):
        Bench.named("resnet20:resnet21", registry)
