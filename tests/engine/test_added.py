"""A plugin's metric: measured beside the others, and where it fails the student is trained all the same."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.discovery import LOCAL, Offer, Provider
from kdbench.engine.added import AddedMetrics, Measured
from kdbench.errors import TrialError
from kdbench.hookspecs import MetricSpec
from kdbench.method import Batch, Method, Output, Terms

WHO = Provider("mine.py", LOCAL, hash_source=True)
LOGITS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
LABELS = torch.tensor([0, 1, 0, 0])


class Labels(Method):
    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}


def added(function: Callable[..., Any], heard: list[str] | None = None, **fields: Any) -> AddedMetrics:
    spec = MetricSpec("gap", "mine:gap", **fields)
    return AddedMetrics([Offer(spec, WHO, loaded=function)], ([] if heard is None else heard).append)


def attempt(action, who, *, thorough):
    try:
        action()
    except Exception as error:  # noqa: BLE001 - as a cohort does
        return error
    return None


def measure(metrics: AddedMetrics, teacher: torch.Tensor | None = None) -> Measured:
    return metrics.measure(LOGITS, LABELS, teacher, attempt=attempt, seed=lambda name: None)


def right(logits, labels):
    return (logits.argmax(1) == labels).float().mean()


def test_a_scalar_is_measured():
    assert measure(added(right)).values == {"gap": 0.75}
    assert measure(added(right, is_share=True, unit="%")).values == {"gap": 75.0}
    assert measure(added(lambda logits, labels: 2)).values == {"gap": 2.0}
    assert measure(
        added(lambda logits, labels, *, power: right(logits, labels) ** power, presets={"power": 2})
    ).values == {"gap": 0.5625}


def test_what_is_not_defined_has_no_value_and_no_reason():
    assert measure(added(lambda logits, labels: None)) == Measured()


def test_a_value_that_is_no_number_is_kept():
    assert math.isnan(measure(added(lambda logits, labels: logits.mean() * math.nan, is_share=True)).values["gap"])


def test_the_teacher_is_compared_with_where_there_is_one():
    metrics = added(lambda logits, labels, teacher_logits: (logits - teacher_logits).sum(), needs_teacher=True)
    assert measure(metrics) == Measured()
    assert measure(metrics, LOGITS - 1).values == {"gap": 8.0}


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda logits, labels: logits, "must return a scalar tensor, got torch.float32 of shape (4, 2)"),
        (lambda logits, labels: "many", "must return a scalar tensor, got str"),
        (lambda logits, labels: torch.tensor(1j), "must return a scalar tensor, got torch.complex64 of shape ()"),
        (lambda logits, labels: logits.mean() - 9, "must be between 0 and inf, got -8.125"),
        (lambda logits, labels: 1 / 0, "ZeroDivisionError: division by zero (test_added.py, line"),
    ],
)
def test_what_fails_is_named_once(function, why):
    heard: list[str] = []
    metrics = added(function, heard, low=0.0)
    for _ in range(2):
        found = measure(metrics)
        assert found.values == {}
        assert found.unmeasured["gap"].startswith(why)
    (said,) = heard
    assert said == (
        f"metric 'gap' of mine.py: {found.unmeasured['gap']}; the trainings continue, and the report shows a dash for "
        "its value"
    )


def test_what_a_metric_does_moves_no_number_of_a_student(learner, train, heard, tmp_path):
    def careless(logits, labels, teacher_logits):
        for tensor in (logits, labels, teacher_logits):
            tensor.zero_()
        torch.set_default_dtype(torch.float64)
        return torch.rand(()) + random.random()

    said: list[str] = []
    train(learner(Labels(), "a", "alone"))
    train(learner(Labels(), "a"), learner(Labels(), "b"), added=added(careless, said, needs_teacher=True))
    assert heard.errors == {}
    one, other = (load_file(tmp_path / name / "student.safetensors") for name in ("alone", "a"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    result = heard.results["a"]
    assert set(result.metrics) == {"top1", "top5", "nll", "ece", "agreement", "kl_to_teacher"}
    assert result.unmeasured["gap"].startswith("it changed global state: torch's default dtype")
    assert len(said) == 1


def test_random_numbers_of_a_metric_are_the_same_beside_others(learner, train, heard):
    metrics = added(lambda logits, labels: torch.rand(()) + random.random())
    train(learner(Labels(), "a", "alone"), added=metrics)
    alone = heard.results["a"].metrics["gap"]
    train(learner(Labels(), "b"), learner(Labels(), "a"), added=metrics)
    assert heard.results["a"].metrics["gap"] == alone


def test_a_replaced_function_is_put_back_and_blamed_on_the_metric(learner, train, heard):
    original = torch.nn.functional.cross_entropy

    def replaces(logits, labels):
        torch.nn.functional.cross_entropy = lambda *given, **options: original(*given, **options) * 2
        return logits.mean()

    train(learner(Labels(), "a"), added=added(replaces))
    assert torch.nn.functional.cross_entropy is original
    assert "changed global state: torch.nn.functional.cross_entropy" in heard.results["a"].unmeasured["gap"]
    assert heard.errors == {}


def test_a_record_of_which_all_was_measured_says_nothing_more(learner, train, heard):
    train(learner(Labels(), "a"), added=added(right))
    assert heard.results["a"].metrics["gap"] == pytest.approx(heard.results["a"].metrics["top1"] / 100)
    assert "unmeasured" not in heard.results["a"].to_json()


def test_an_error_of_kdbenchs_own_is_its_message():
    def refuses(logits, labels):
        raise TrialError("no good")

    assert measure(added(refuses)).unmeasured == {"gap": "no good"}
