"""Checks for authors of losses and models.

On the command line, ``kdbench check my-loss``. In a test file::

    from kdbench.testing import method_checks, model_checks

    test_my_loss = method_checks("my-loss")
    test_my_net = model_checks("my-net")

Each check is a function with a question as its docstring (:mod:`kdbench.testing.checks`). A check passes,
fails, is skipped with a reason, or fails as expected (see ``expected_failures`` of a method).
"""

from __future__ import annotations

from kdbench.testing.checks import CHECKS, MODEL_CHECKS, Check
from kdbench.testing.pytest import method_checks, model_checks
from kdbench.testing.runner import Report, Result, Status, examine, examine_model
from kdbench.testing.subject import Examinee

__all__ = [
    "CHECKS",
    "MODEL_CHECKS",
    "Check",
    "Examinee",
    "Report",
    "Result",
    "Status",
    "examine",
    "examine_model",
    "method_checks",
    "model_checks",
]
