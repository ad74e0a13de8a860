"""Put the checks to a method on each pair of networks, and weigh the answers against what it expects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch

from kdbench.errors import Incompatible, did_you_mean
from kdbench.method import Method
from kdbench.plugins import Registry
from kdbench.testing.bench import FURTHER_PAIRS, PAIRS, Bench
from kdbench.testing.checks import CHECKS, Check
from kdbench.testing.subject import CheckFailed, CheckSkipped, Examinee, Subject


class Status(StrEnum):
    """How a check came out."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    EXPECTED_FAILURE = "expected failure"


@dataclass(frozen=True)
class Result:
    """How one check came out, and why (for a pass: what is worth knowing)."""

    check: str
    question: str
    status: Status
    reason: str

    def to_json(self) -> dict[str, str]:
        """For ``--json``."""
        return {"check": self.check, "question": self.question, "status": self.status.value, "reason": self.reason}


@dataclass(frozen=True)
class Report:
    """All results of a method."""

    method: str
    distribution: str
    version: str
    pairs: Sequence[str]
    """The pairs it was tried on."""
    unread: Mapping[str, str]
    """The pairs it cannot read, with the reason."""
    results: Sequence[Result]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.having(Status.FAILED)

    def having(self, status: Status) -> list[Result]:
        """The results of one status."""
        return [result for result in self.results if result.status is status]

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "method": self.method,
            "distribution": self.distribution,
            "version": self.version,
            "passed": self.passed,
            "pairs": list(self.pairs),
            "unread": dict(self.unread),
            "checks": [result.to_json() for result in self.results],
        }


def examine(examinee: Examinee, registry: Registry, pairs: Sequence[str] = ()) -> Report:
    """Put every check to a method, on the pairs it can read (of ``pairs``, or else of the usual ones)."""
    examination = Examination(examinee, registry, pairs)
    provider = examinee.offer.provider
    return Report(
        examinee.name,
        provider.distribution,
        provider.version,
        [subject.bench.pair for subject in examination.subjects],
        examination.unread,
        list(examination.results()),
    )


@dataclass
class Examination:
    """A method, and the pairs it is tried on."""

    examinee: Examinee
    registry: Registry
    pairs: Sequence[str] = ()
    unread: dict[str, str] = field(default_factory=dict)

    @cached_property
    def subjects(self) -> list[Subject]:
        """The method on each pair it can read; further pairs are tried where it can read none of the usual."""
        subjects = self._readable(self.pairs or PAIRS)
        return subjects if subjects or self.pairs else self._readable(FURTHER_PAIRS)[:1]

    def _readable(self, pairs: Iterable[str]) -> list[Subject]:
        readable = []
        for pair in pairs:
            subject = Subject(self.examinee, bench(pair, self.registry))
            try:
                subject.method()
            except Incompatible as reason:
                self.unread[pair] = str(reason)
            except Exception:  # noqa: BLE001 - each check will say so
                readable.append(subject)
            else:
                readable.append(subject)
        return readable

    @cached_property
    def expected(self) -> Mapping[str, str]:
        """The failures that the method announces, as it stands after its setup."""
        try:
            method: Method | type[Method] = self.subjects[0].method() if self.subjects else self.examinee.method_class
        except Exception:  # noqa: BLE001 - each check will say so
            method = self.examinee.method_class
        return method.expected_failures

    def results(self) -> Iterable[Result]:
        """Every check's, and one more where ``expected_failures`` names no check."""
        for check in CHECKS:
            yield self.ask(check)
        names = [check.name for check in CHECKS]
        for unknown in sorted(self.expected.keys() - set(names)):
            reason = f"expected_failures: no check is called '{unknown}'{did_you_mean(unknown, names)}"
            yield Result(unknown, "Does each expected failure name a check?", Status.FAILED, reason)

    def ask(self, check: Check) -> Result:
        """One check on every pair: failed if it fails on one, passed if it passes on one at least."""
        status, reason = self._asked(check)
        announced = self.expected.get(check.name)
        if announced is not None and status is Status.FAILED:
            status, reason = Status.EXPECTED_FAILURE, f"{announced} (seen: {reason})"
        elif announced is not None and status is Status.PASSED:
            status, reason = Status.FAILED, f"expected to fail ({announced}), yet it passes: no longer list it"
        return Result(check.name, check.question, status, reason)

    def _asked(self, check: Check) -> tuple[Status, str]:
        if not self.subjects:
            why = "; ".join(f"{pair}: {reason}" for pair, reason in self.unread.items())
            return Status.FAILED, f"the method reads none of the pairs ({why}); name one with --pair"
        answers: dict[Status, dict[str, str]] = {}
        for subject in self.subjects:
            status, reason = _answer(check.ask, subject)
            answers.setdefault(status, {})[subject.bench.pair] = reason
        for status in (Status.FAILED, Status.PASSED):
            if status in answers:
                return status, self._joined(answers[status])
        return Status.SKIPPED, self._joined(answers[Status.SKIPPED])

    def _joined(self, reasons: Mapping[str, str]) -> str:
        """The reasons; with their pairs where they are not the same on all."""
        if len(set(reasons.values())) == 1 and len(reasons) == len(self.subjects):
            return next(iter(reasons.values()))
        return "; ".join(f"{pair}: {reason}" for pair, reason in reasons.items() if reason)


def _answer(ask: Callable[[Subject], str | None], subject: Subject) -> tuple[Status, str]:
    # Tensors this small are slower on many threads than on one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A warning is no answer, also where the caller turns warnings into errors.
        with warnings.catch_warnings(action="ignore"):
            return Status.PASSED, ask(subject) or ""
    except CheckFailed as failure:
        return Status.FAILED, str(failure)
    except CheckSkipped as skip:
        return Status.SKIPPED, str(skip)
    except Exception as error:  # noqa: BLE001 - whatever a method raises is its failure
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
