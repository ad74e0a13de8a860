"""Runs the checks on a method for each pair of networks, or on a network for each image size."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch

from kdbench.discovery import Offer, Registry
from kdbench.errors import Incompatible, ModelError, did_you_mean
from kdbench.hookspecs import ModelSpec
from kdbench.method import Method
from kdbench.testing import process
from kdbench.testing.bench import FURTHER_PAIRS, PAIRS, Bench
from kdbench.testing.checks import CHECKS, MODEL_CHECKS, Check
from kdbench.testing.network import FURTHER_SHAPES, SHAPES, NetworkSubject, Shape
from kdbench.testing.subject import CheckFailed, CheckSkipped, Examinee, Subject


class Status(StrEnum):
    """The outcome of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    EXPECTED_FAILURE = "expected failure"


@dataclass(frozen=True)
class Result:
    """The outcome of one check, and the reason (for a pass: a remark)."""

    check: str
    question: str
    status: Status
    reason: str

    def to_json(self) -> dict[str, str]:
        """The content for ``--json``."""
        return {"check": self.check, "question": self.question, "status": self.status.value, "reason": self.reason}


@dataclass(frozen=True)
class Report:
    """All results of a method or a model."""

    kind: Literal["method", "model"]
    name: str
    distribution: str
    version: str
    tried_on: Sequence[str]
    """The pairs of networks, or for a model the image shapes, that were used."""
    refused: Mapping[str, str]
    """The pairs that the method does not support, or the shapes that the model does not support, with the reason."""
    results: Sequence[Result]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.having(Status.FAILED)

    def having(self, status: Status) -> list[Result]:
        """The results with one status."""
        return [result for result in self.results if result.status is status]

    def to_json(self) -> dict[str, Any]:
        """The content for ``--json``."""
        tried_on, refused = ("pairs", "unread") if self.kind == "method" else ("image_shapes", "refused")
        return {
            self.kind: self.name,
            "distribution": self.distribution,
            "version": self.version,
            "passed": self.passed,
            tried_on: list(self.tried_on),
            refused: dict(self.refused),
            "checks": [result.to_json() for result in self.results],
        }


def examine(examinee: Examinee, registry: Registry, pairs: Sequence[str] = ()) -> Report:
    """Run every check on a method, with the pairs that it supports (of ``pairs``, by default the usual ones)."""
    examination = Examination(examinee, registry, pairs)
    return _report("method", examinee.offer, examination)


def examine_model(offer: Offer[ModelSpec]) -> Report:
    """Run every check on a model, at the image sizes that it supports."""
    return _report("model", offer, ModelExamination(offer))


def _report(kind: Literal["method", "model"], offer: Offer[Any], examination: _Examination[Any]) -> Report:
    results = list(examination.results())
    provider = offer.provider
    tried_on = [subject.place for subject in examination.subjects]
    return Report(
        kind, offer.spec.name, provider.distribution, provider.version, tried_on, examination.refused, results
    )


class _Placed(Protocol):
    @property
    def place(self) -> str: ...


S = TypeVar("S", bound=_Placed)


class _Examination(ABC, Generic[S]):
    """The checks of a method or model, for each pair of networks or image shape ("place")."""

    refused: dict[str, str]

    @property
    @abstractmethod
    def subjects(self) -> list[S]:
        """The subject for each place."""

    @property
    @abstractmethod
    def nowhere(self) -> str:
        """The reason if there is no supported place."""

    @abstractmethod
    def results(self) -> Iterable[Result]:
        """The results of all checks."""

    def _asked(self, check: Check[S]) -> tuple[Status, str]:
        """Run one check in every place, or the first: it fails if it fails in one, and passes if it passes in one."""
        if not self.subjects:
            return Status.FAILED, self.nowhere
        answers: dict[Status, dict[str, str]] = {}
        for subject in self.subjects if check.everywhere else self.subjects[:1]:
            status, reason = _answer(check.ask, subject)
            answers.setdefault(status, {})[subject.place] = reason
        for status in (Status.FAILED, Status.PASSED):
            if status in answers:
                return status, self._joined(answers[status])
        return Status.SKIPPED, self._joined(answers[Status.SKIPPED])

    def _joined(self, reasons: Mapping[str, str]) -> str:
        """The reasons, with their places if they differ."""
        if len(set(reasons.values())) == 1 and len(reasons) == len(self.subjects):
            return next(iter(reasons.values()))
        return "; ".join(f"{place}: {reason}" for place, reason in reasons.items() if reason)


@dataclass
class Examination(_Examination[Subject]):
    """The checks of a method on pairs of networks."""

    examinee: Examinee
    registry: Registry
    pairs: Sequence[str] = ()
    refused: dict[str, str] = field(default_factory=dict)

    @cached_property
    def subjects(self) -> list[Subject]:
        """The method on each supported pair; other pairs are used if it supports none of the usual ones."""
        subjects = self._readable(self.pairs or PAIRS)
        return subjects if subjects or self.pairs else self._readable(FURTHER_PAIRS)[:1]

    def _readable(self, pairs: Iterable[str]) -> list[Subject]:
        readable = []
        for pair in pairs:
            subject = Subject(self.examinee, bench(pair, self.registry))
            try:
                subject.method()
            except Incompatible as reason:
                self.refused[pair] = str(reason)
            except Exception:  # noqa: BLE001 - each check reports it
                readable.append(subject)
            else:
                readable.append(subject)
        return readable

    @property
    def nowhere(self) -> str:
        """The reason why no check is possible."""
        why = "; ".join(f"{pair}: {reason}" for pair, reason in self.refused.items())
        return f"the method supports none of the pairs ({why}); name one with --pair"

    @cached_property
    def expected(self) -> Mapping[str, str]:
        """The expected failures that the method declares after its setup."""
        try:
            method: Method | type[Method] = self.subjects[0].method() if self.subjects else self.examinee.method_class
        except Exception:  # noqa: BLE001 - each check reports it
            method = self.examinee.method_class
        return method.expected_failures

    def results(self) -> Iterable[Result]:
        """The results of all checks, and a failure for each unknown name in ``expected_failures``."""
        for check in CHECKS:
            yield self.ask(check)
        names = [check.name for check in CHECKS]
        for unknown in sorted(self.expected.keys() - set(names)):
            reason = f"expected_failures: no check is called '{unknown}'{did_you_mean(unknown, names)}"
            yield Result(unknown, "Does each expected failure name a check?", Status.FAILED, reason)

    def ask(self, check: Check[Subject]) -> Result:
        """Run one check on every pair, and compare it with the expected failures."""
        status, reason = self._asked(check)
        announced = self.expected.get(check.name)
        if announced is not None and status is Status.FAILED:
            status, reason = Status.EXPECTED_FAILURE, f"{announced} (seen: {reason})"
        elif announced is not None and status is Status.PASSED:
            status, reason = (
                Status.FAILED,
                f"expected to fail ({announced}), but it passes: remove it from expected_failures",
            )
        return Result(check.name, check.question, status, reason)


@dataclass
class ModelExamination(_Examination[NetworkSubject]):
    """The checks of a model at image shapes."""

    offer: Offer[ModelSpec]
    refused: dict[str, str] = field(default_factory=dict)

    @cached_property
    def subjects(self) -> list[NetworkSubject]:
        """The model at each supported shape; a larger shape is used if it supports none of the usual ones."""
        return self._taken(SHAPES) or self._taken(FURTHER_SHAPES)

    def _taken(self, shapes: Iterable[Shape]) -> list[NetworkSubject]:
        taken = []
        for shape in shapes:
            subject = NetworkSubject(self.offer, shape)
            try:
                with process.kept():
                    subject.network()
            except ModelError as reason:
                self.refused[subject.place] = str(reason)
            except Exception:  # noqa: BLE001 - the first check reports it
                taken.append(subject)
            else:
                taken.append(subject)
        return taken

    @property
    def nowhere(self) -> str:
        """The reason why no check is possible."""
        why = "; ".join(f"{shape}: {reason}" for shape, reason in self.refused.items())
        return f"the model supports none of the image shapes ({why})"

    def results(self) -> Iterable[Result]:
        """The results of all checks; if the first one (the contract) fails, only that."""
        kept = True
        for check in MODEL_CHECKS:
            if kept:
                result = self.ask(check)
                kept = check is not MODEL_CHECKS[0] or result.status is Status.PASSED
            else:
                reason = f"the check '{MODEL_CHECKS[0].name}' fails"
                result = Result(check.name, check.question, Status.SKIPPED, reason)
            yield result

    def ask(self, check: Check[NetworkSubject]) -> Result:
        """Run one check at every shape."""
        return Result(check.name, check.question, *self._asked(check))


def _answer(ask: Callable[[S], str | None], subject: S) -> tuple[Status, str]:
    # For tensors this small, one thread is faster than many.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Warnings do not fail a check, also if the caller turns warnings into errors.
        with warnings.catch_warnings(action="ignore"), process.kept():
            return Status.PASSED, ask(subject) or ""
    except CheckFailed as failure:
        return Status.FAILED, str(failure)
    except CheckSkipped as skip:
        return Status.SKIPPED, str(skip)
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises is its failure
        return Status.FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        torch.set_num_threads(threads)


_BENCHES: dict[tuple[str, int], Bench] = {}


def bench(pair: str, registry: Registry) -> Bench:
    """The bench of a pair; one for all methods of a registry, so that its networks run once."""
    key = (pair, id(registry))
    if key not in _BENCHES:
        _BENCHES[key] = Bench.named(pair, registry)
    return _BENCHES[key]
