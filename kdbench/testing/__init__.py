"""Does a method keep the contract? Checks that anybody runs on their own loss.

On the command line, ``kdbench check my-loss``. In a test file::

    from kdbench.testing import method_checks

    test_my_loss = method_checks("my-loss")

Each check is a function with one question as its docstring (:mod:`kdbench.testing.checks`). A check passes,
fails, is skipped with the reason, or fails as the method's ``expected_failures`` says it will.
"""

from __future__ import annotations

from kdbench.testing.checks import CHECKS, Check
from kdbench.testing.pytest import method_checks
from kdbench.testing.runner import Report, Result, Status, examine
from kdbench.testing.subject import Examinee

__all__ = ["CHECKS", "Check", "Examinee", "Report", "Result", "Status", "examine", "method_checks"]
