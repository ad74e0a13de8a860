"""What public implementations stumble over, beside what ``kdbench check`` asks.

Every check is asked of every method that comes with kdbench in ``tests/testing/test_first_party.py``.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from kdbench_methods import METHODS

from kdbench.discovery import discover
from kdbench.testing.checks.numbers import finite
from kdbench.testing.runner import Examination
from kdbench.testing.targets import find

NAMES = [spec.name for spec in METHODS]
MEMBERS = [{"name": name} for name in ("crd", "ft", "ab", "deit", "vid")]
EXAMINEES = [*find("kdbench").examinees, *find("combine", {"methods": MEMBERS}).examinees]


@pytest.fixture(scope="session")
def registry():
    return discover()


@pytest.fixture(params=EXAMINEES, ids=lambda examinee: examinee.name)
def subjects(request, registry):
    """A method on each of the usual pairs that it can read."""
    found = Examination(request.param, registry).subjects
    assert found
    return found


def test_every_method_is_tried():
    assert {examinee.name for examinee in EXAMINEES} == set(NAMES)


def test_a_batch_of_two(subjects):
    for subject in subjects:
        finite(subject, subject.bench.made_up(2))


@pytest.mark.parametrize("scale", [1e4, 1e-8])
def test_logits_and_features_of_one_scale(subjects, scale):
    """A loss that does not change with scale has a gradient that grows as the scale falls: finite is all."""
    for subject in subjects:
        finite(subject, subject.bench.made_up(change=lambda tap, values: values * scale))


@pytest.fixture
def pair(signature):
    return signature("student"), signature("teacher")


@pytest.mark.parametrize("name", NAMES)
def test_moves_to_the_meta_device(name, pair, data, build):
    """Planning builds methods there, without labels; nothing may ask for values."""
    with torch.device("meta"):
        method = build(name, *pair, type(data)(data.classes, data.n_train))
    assert {p.device.type for p in method.parameters()} <= {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_settings_have_defaults_and_classes_say_what_they_are(name, build, pair, data):
    method = build(name, *pair, data)
    parameters = inspect.signature(type(method)).parameters if "__init__" in vars(type(method)) else {}
    for parameter in parameters.values():
        assert parameter.default is not inspect.Parameter.empty or parameter.name == "methods"
    assert type(method).__doc__
    assert "https://" in type(method).paper or name in {"none", "combine", "crd+kd"}
