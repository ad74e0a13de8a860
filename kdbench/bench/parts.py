"""The parts of a measurement, and the run of some of them within a time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdbench.bench import cohorts, correctness, data, kernels, layout, losses, machine, pairs
from kdbench.bench.budget import Budget
from kdbench.bench.findings import Findings
from kdbench.bench.hardware import facts
from kdbench.bench.session import Session
from kdbench.discovery import Registry
from kdbench.errors import KdbenchError, ResultsError, did_you_mean, in_words


@dataclass(frozen=True)
class Part:
    """A part that can be selected with ``--only``."""

    name: str
    measure: Callable[[Session], None]
    share: float
    """Of the time; only the ratios of shares matter."""
    summary: str


PARTS = (
    Part("machine", machine.measure, 0.08, "bandwidth of a copy, rate of a matrix product"),
    Part("correctness", correctness.measure, 0.25, "trainings that must end with the same bits"),
    Part("data", data.measure, 0.1, "images per second of decoding and augmentation"),
    Part("cohorts", cohorts.measure, 0.22, "a step of lockstep cohorts against the sum of their parts"),
    Part("kernels", kernels.measure, 0.12, "kernels, memory and operations of a step"),
    Part("layout", layout.measure, 0.1, "channels_last and contiguous memory, in each precision"),
    Part("pairs", pairs.measure, 0.28, "steps per second of the pairs of suite cifar100"),
    Part("losses", losses.measure, 0.2, "time and peak memory of the built-in losses"),
)
"""In the order in which they are measured: those that can use any time come last."""


def chosen(only: Collection[str], parts: Sequence[Part] = PARTS) -> list[Part]:
    """The parts with these names, in their order; all of them if there are no names.

    Raises :class:`KdbenchError` for an unknown name.
    """
    known = [part.name for part in parts]
    for name in only:
        if name not in known:
            raise KdbenchError(f"--only {name}: there is no such part{did_you_mean(name, known)}")
    return [part for part in parts if not only or part.name in only]


def measure(
    device: torch.device,
    registry: Registry,
    findings: Findings,
    *,
    seconds: float,
    parts: Sequence[Part] = PARTS,
    clock: Callable[[], float] = time.perf_counter,
    begun: Callable[[Part], None] = lambda _: None,
) -> None:
    """Measure the parts, which divide ``seconds`` among them. ``begun`` is given each part when it starts.

    A part that fails is recorded as failed, and the others are measured. Raises
    :class:`~kdbench.errors.ResultsError` if the file cannot be written.
    """
    findings.describe(facts(device))
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-", ignore_cleanup_errors=True) as folder:
        budget = Budget(seconds, {part.name: part.share for part in parts}, clock)
        session = Session(device, registry, findings, budget, Path(folder))
        for part in parts:
            begun(part)
            budget.begin(part.name)
            session.part = part.name
            try:
                part.measure(session)
            except ResultsError:
                raise
            except Exception as error:  # noqa: BLE001 - the other parts are measured all the same
                session.leave_out(part.name, {}, in_words(error), failed=True)
    findings.finish()
