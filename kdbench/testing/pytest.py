"""The checks as a parametrised test for pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import PluginError
from kdbench.method import Method
from kdbench.testing.checks import CHECKS, MODEL_CHECKS, Check
from kdbench.testing.runner import Examination, ModelExamination, Status
from kdbench.testing.targets import find


def method_checks(
    target: str | Path | type[Method],
    *,
    settings: Mapping[str, Any] | None = None,
    pairs: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
) -> Callable[..., None]:
    """A test for every check of a method; assign it to a name that begins with ``test``.

    Args:
        target: a method's name, a plugin file, a package (all its methods), or the class.
        settings: settings that differ from the method's defaults.
        pairs: ``teacher:student`` names of networks to use instead of the usual ones.
        plugins: additional plugin files to load.
    """
    import pytest

    found = find(target, settings, plugins)
    cases = []
    for examinee in found.examinees:
        examination = Examination(examinee, found.registry, pairs)
        prefix = f"{examinee.name}-" if len(found.examinees) > 1 else ""
        cases += [pytest.param(examination, check, id=prefix + check.name) for check in CHECKS]
    for name, reason in found.not_checked.items():
        cases.append(pytest.param(None, None, id=name, marks=pytest.mark.skip(reason=reason)))
    if not cases:
        raise PluginError(f"{target}: contains no method")
    return _test(cases)


def model_checks(target: str | Path, *, plugins: Sequence[str | Path] = ()) -> Callable[..., None]:
    """A test for every check of a model; assign it to a name that begins with ``test``.

    Args:
        target: a model's name, a plugin file, or a package (all its models).
        plugins: additional plugin files to load.
    """
    import pytest

    offers = find(target, plugins=plugins).models
    if not offers:
        raise PluginError(f"{target}: contains no model")
    cases = []
    for offer in offers:
        examination = ModelExamination(offer)
        prefix = f"{offer.spec.name}-" if len(offers) > 1 else ""
        cases += [pytest.param(examination, check, id=prefix + check.name) for check in MODEL_CHECKS]
    return _test(cases)


def _test(cases: Sequence[Any]) -> Callable[..., None]:
    import pytest

    @pytest.mark.parametrize(("examination", "check"), cases)
    def test(examination: Any, check: Check[Any]) -> None:
        __tracebackhide__ = True
        result = examination.ask(check)
        if result.status is Status.FAILED:
            pytest.fail(f"{result.question} {result.reason}", pytrace=False)
        if result.status is Status.SKIPPED:
            pytest.skip(result.reason)
        if result.status is Status.EXPECTED_FAILURE:
            pytest.xfail(result.reason)

    checked: Callable[..., None] = test
    return checked
