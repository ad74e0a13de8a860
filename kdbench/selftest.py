"""Does this machine compute what it should? Golden vectors on one of its devices, and a short training there."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from kdbench.discovery import Registry
from kdbench.discovery.settings import load_target
from kdbench.errors import PluginError
from kdbench.run import run_suite
from kdbench.status import Status
from kdbench.suite.load import shipped

if TYPE_CHECKING:
    from kdbench.hookspecs import GoldenSpec

TOLERANCE = 1e-9
"""Relative difference, in float64, that is put down to rounding."""

SUITE = "digits"
SHORTENED = (
    "seeds=[0]",
    "recipe.epochs=8",
    "pairs.1.recipe.warmup_epochs=1",
    "methods.ab.boundary_epochs=2",
    "methods.ft.paraphraser_epochs=2",
)
"""What of the suite is changed, so that it takes a minute."""

LEARNT = 75.0
"""Test accuracy in percent that every student must reach: chance is 10, eight epochs give 89 to 98."""


@dataclass(frozen=True)
class Agreement:
    """How far a loss is from its golden vectors: the largest relative differences on the device."""

    case: str
    loss: float
    gradient: float

    @property
    def passed(self) -> bool:
        """Whether all differences are rounding."""
        return self.loss <= TOLERANCE and self.gradient <= TOLERANCE


@dataclass(frozen=True)
class Trained:
    """What came of a trial: its state, and the test accuracy in percent where it ended."""

    pair: str
    method: str
    status: Status
    reason: str
    top1: float | None = None

    @property
    def skipped(self) -> bool:
        """Whether the method cannot read the pair."""
        return self.status is Status.SKIPPED

    @property
    def passed(self) -> bool:
        """Whether it learnt."""
        return self.status is Status.DONE and self.top1 is not None and self.top1 >= LEARNT


def compare_golden(registry: Registry, device: torch.device) -> Iterator[Agreement]:
    """Each golden case that the plugins offer, computed on ``device``."""
    offered: Iterable[Sequence[GoldenSpec]] = registry.manager.hook.kdbench_golden()
    for spec in itertools.chain.from_iterable(offered):
        for case, pairs in _computed(spec, device):
            differences = {name: deviation(*pair) for name, pair in pairs.items()}
            loss = differences.pop("loss")
            yield Agreement(case, loss, max(differences.values(), default=0.0))


def _computed(spec: GoldenSpec, device: torch.device) -> Iterator[tuple[str, Mapping[str, tuple[Tensor, Tensor]]]]:
    try:
        yield from load_target(spec.target)(device)
    except Exception as error:
        raise PluginError(f"golden vectors of '{spec.name}': {type(error).__name__}: {error}") from error


def deviation(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|; infinite where the shapes differ or a value is not finite."""
    if found.shape != expected.shape or not found.isfinite().all():
        return float("inf")
    found, expected = found.double().cpu(), expected.double().cpu()
    # Relative to the largest entry: entries that cancel to nearly 0 hold rounding alone.
    scale = expected.abs().max().item()
    difference = (found - expected).abs().max().item()
    return difference / scale if scale else difference


def train_shortened(
    device: str, observers: Sequence[object] = (), warn: Callable[[str], None] | None = None
) -> list[Trained]:
    """Train a teacher and its students with every method of the suite on ``device``; nothing of it is kept."""
    with tempfile.TemporaryDirectory(prefix="kdbench-selftest-") as folder:
        results = run_suite(
            shipped()[SUITE],
            overrides=SHORTENED,
            device=device,
            output=Path(folder) / "runs",
            report_dir=Path(folder) / "reports",
            tracking_uri="none",
            observers=observers,
            warn=warn,
        )
        outcomes = []
        for trial in results.plan.trials:
            result = results.folder.trial(trial.id).result
            top1 = result.top1 if result else None
            outcomes.append(Trained(trial.pair, trial.label, trial.status, trial.reason, top1))
    return outcomes


def passed(golden: Sequence[Agreement], trained: Sequence[Trained]) -> bool:
    """Whether all is well, and was looked at."""
    outcomes = [student.passed for student in trained if not student.skipped]
    return bool(golden and outcomes) and all(agreement.passed for agreement in golden) and all(outcomes)


def tables(golden: Sequence[Agreement], trained: Sequence[Trained], device: str) -> Iterator[Table | str]:
    """What was found, for people."""
    title = f"golden vectors on {device}: largest relative differences in float64"
    vectors = Table("case", "loss", "gradient", "result", title=title, title_justify="left")
    for agreement in golden:
        vectors.add_row(agreement.case, f"{agreement.loss:.1e}", f"{agreement.gradient:.1e}", _mark(agreement.passed))
    yield vectors
    title = f"suite {SUITE}, shortened, on {device}"
    students = Table("pair", "method", "accuracy", "result", "reason", title=title, title_justify="left")
    for student in trained:
        accuracy = f"{student.top1:.1f} %" if student.top1 is not None else ""
        result = "[yellow]skipped[/]" if student.skipped else _mark(student.passed)
        students.add_row(student.pair, student.method, accuracy, result, escape(student.reason))
    yield students
    agreed, learnt = sum(item.passed for item in golden), sum(item.passed for item in trained)
    tried = sum(not item.skipped for item in trained)
    yield (
        f"{agreed} of {len(golden)} golden vectors agree within {TOLERANCE:.0e}; "
        f"{learnt} of {tried} students reach {LEARNT:.0f} %, {len(trained) - tried} skipped"
    )


def _mark(passed: bool) -> str:
    return "[green]passed[/]" if passed else "[bold red]failed[/]"
