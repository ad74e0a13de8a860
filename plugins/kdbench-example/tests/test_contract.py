"""Does the loss keep kdbench's contract? The checks that `kdbench check standardised-kd` runs, as tests."""

from __future__ import annotations

from kdbench.testing import method_checks

test_contract = method_checks("standardised-kd")
