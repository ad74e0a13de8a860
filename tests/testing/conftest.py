from __future__ import annotations

import pytest

from kdbench.discovery import discover
from kdbench.testing.runner import Examination
from kdbench.testing.targets import find


@pytest.fixture(scope="session")
def registry():
    return discover()


@pytest.fixture
def examination(registry):
    """A method class on one pair of networks, or on those named."""

    def make(method, *pairs, settings=None):
        [examinee] = find(method, settings).examinees
        return Examination(examinee, registry, pairs or ("resnet20:resnet8",))

    return make
