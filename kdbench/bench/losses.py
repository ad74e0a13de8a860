"""Part ``losses``: time and peak memory of the built-in losses alone, on random outputs of two equal networks.

The networks are facts only: a stem, three stages of D/4, D/2 and D channels on 8, 4 and 2 pixels, an embedding of D
values, 100 classes. A measurement is a forward pass of the loss, and the gradients of the student's outputs and of the
method's own parameters; the stages of a method are measured separately.

Losses cost between microseconds and minutes. What is expected to be cheapest comes next, judged by the next smaller
batch size and width of the same loss, until there is no time for it.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kdbench.bench.profile import peak_bytes
from kdbench.bench.session import NO_TIME, Session
from kdbench.bench.timing import repeated
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.engine.stages import Stages, through
from kdbench.engine.terms import weigh
from kdbench.errors import Incompatible, PluginError, in_words
from kdbench.method import Batch, DataSignature, Output, Signature, TapSignature, set_up
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.results import MAIN
from kdbench.testing.subject import Examinee

BATCHES = (64, 256, 1024)
WIDTHS = (64, 512, 2048)
CLASSES = 100
N_TRAIN = 50_000
GROWTH = 2
"""Time and memory are assumed to grow like this power of batch size and width."""
CALLS = 5
"""Of a measurement: one to warm up, three for the median, one for the memory."""
FREE = 0.5
"""Of the free memory: a loss that may need more is left out."""
LOSS, MEMORY = "forward and backward", "peak memory"
"""What is measured."""


@dataclass(frozen=True)
class Case:
    """A stage of a loss at a size."""

    loss: str
    stage: str
    B: int
    D: int
    examinee: Examinee = field(compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its row."""
        return {"loss": self.loss, "stage": self.stage, "batch": self.B, "width": self.D}


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    seconds: float
    bytes: float

    def grown(self, factor: float) -> Cost:
        """At a batch size or width larger by ``factor``."""
        return Cost(factor**GROWTH * self.seconds, factor**GROWTH * self.bytes)


@dataclass(frozen=True)
class Sizes:
    """The batch sizes and widths that are measured."""

    batches: Sequence[int]
    widths: Sequence[int]

    def cases(self, smallest: Sequence[Case]) -> list[Case]:
        """Each loss at each size."""
        return [replace(case, B=B, D=D) for B in self.batches for D in self.widths for case in smallest]

    def expected(self, case: Case, known: Mapping[Case, Cost]) -> Cost:
        """What a case may cost at most; infinite as long as no smaller one is known, but nothing for the smallest."""
        if (min(self.batches), min(self.widths)) == (case.B, case.D):
            return Cost(0.0, 0.0)
        smaller = [(replace(case, B=B), case.B / B) for B in self.batches if B < case.B]
        smaller += [(replace(case, D=D), case.D / D) for D in self.widths if D < case.D]
        costs = [known[other].grown(factor) for other, factor in smaller if other in known]
        return min(costs, key=lambda cost: cost.seconds, default=Cost(math.inf, math.inf))


def measure(session: Session, batches: Sequence[int] = BATCHES, widths: Sequence[int] = WIDTHS) -> None:
    """Measure as many losses and sizes as there is time for, cheap ones first."""
    sizes = Sizes(batches, widths)
    waiting = sizes.cases(list(_smallest(session, min(batches), min(widths))))
    known: dict[Case, Cost] = {}
    while waiting:
        expected = {case: sizes.expected(case, known) for case in waiting}
        case = min(expected, key=lambda case: expected[case].seconds)
        cost = expected[case]
        if not session.budget.allows(CALLS * cost.seconds):
            break
        waiting.remove(case)
        if cost.bytes > FREE * free_bytes(session.device):
            session.leave_out(LOSS, case.settings, "may need more than half of the free memory")
            continue
        try:
            known[case] = _measure(session, case)
        except Exception as error:  # noqa: BLE001 - the other losses are measured all the same
            failed = not isinstance(error, torch.OutOfMemoryError)
            session.leave_out(LOSS, case.settings, in_words(error).splitlines()[0], failed=failed)
    for case in waiting:
        measurable = sizes.expected(case, known).seconds < math.inf
        reason = NO_TIME if measurable else "no smaller batch or width was measured"
        session.leave_out(LOSS, case.settings, reason)


def _measure(session: Session, case: Case) -> Cost:
    action = prepared(case, session.device)
    times = repeated(action, session.device, 0.005 * session.budget.left)
    peak = peak_bytes(action, session.device)
    session.add(LOSS, case.settings, [1000 * time for time in times], "ms")
    session.add(MEMORY, case.settings, [peak / 2**20], "MiB")
    return Cost(statistics.median(times), peak)


def _smallest(session: Session, B: int, D: int) -> Iterator[Case]:
    """The stages of the built-in losses; variants are the same classes with other settings and are not measured."""
    for offer in session.registry.methods:
        if offer.provider.distribution != FIRST_PARTY or offer.spec.presets:
            continue
        try:
            examinee = Examinee.of(offer, {})
            stages = _entered(Case(offer.spec.name, MAIN, B, D, examinee))
        except (PluginError, Incompatible) as reason:
            session.leave_out(LOSS, {"loss": offer.spec.name}, str(reason))
            continue
        for phase in stages.phases:
            yield Case(offer.spec.name, phase.name, B, D, examinee)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 2**32


def prepared(case: Case, device: torch.device) -> Callable[[], None]:
    """Each call computes the loss and all gradients."""
    stages = _entered(case)
    stages.modules.to(device)
    stages.set_modes()
    generator = torch.Generator(device).manual_seed(0)
    phase = stages.phase
    student, teacher = _signature("student", case.D), _signature("teacher", case.D)
    seen = _outputs(student, phase.student_reads, case.B, generator, records=True) if phase.uses_student else None
    shown = _outputs(teacher, phase.teacher_reads, case.B, generator, records=False)
    indices = torch.arange(case.B, device=device)
    batch = Batch(
        labels=indices % CLASSES,
        indices=indices,
        epoch=torch.zeros((), device=device),
        progress=torch.zeros((), device=device),
        generator=generator,
    )
    leaves = list(stages.trained.values())
    if seen is not None:
        leaves += {"logits": seen.logits, **seen.taps}.values()  # type: ignore[arg-type]

    def action() -> None:
        # Losses of stages without the student accept None.
        _, loss = weigh(phase.loss(seen, shown, batch))  # type: ignore[arg-type]
        torch.autograd.grad(loss, leaves, allow_unused=True)

    return action


def _entered(case: Case) -> Stages:
    """A method on two networks of the case's width, in the case's stage."""
    student, teacher = _signature("student", case.D), _signature("teacher", case.D)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = case.examinee.build()
        set_up(method, student, teacher, DataSignature(CLASSES, N_TRAIN, torch.arange(N_TRAIN) % CLASSES))
    stages = Stages(method, Parts.of(Recipe(epochs=1)), student, teacher)
    for phase in through(stages):
        if phase.name == case.stage:
            break
    return stages


def _signature(name: str, D: int) -> Signature:
    taps = {"stem": TapSignature((D // 4, 8, 8), True)}
    for number, (channels, side) in enumerate(((D // 4, 8), (D // 2, 4), (D, 2)), start=1):
        affine = torch.linspace(0.5, 1.5, channels), torch.linspace(-1.0, 1.0, channels)
        taps[f"stage{number}/pre"] = TapSignature((channels, side, side), False, affine)
        taps[f"stage{number}"] = TapSignature((channels, side, side), True)
    taps["embedding"] = TapSignature((D,), True)
    taps["logits"] = TapSignature((CLASSES,), False)
    return Signature(name, "resnet", CLASSES, taps, torch.linspace(-1, 1, CLASSES * D).view(CLASSES, D))


def _outputs(network: Signature, reads: Sequence[str], B: int, generator: torch.Generator, *, records: bool) -> Output:
    def draw(name: str) -> Tensor:
        tap = network.taps[name]
        values = torch.randn(B, *tap.shape, generator=generator, device=generator.device)
        return (values.relu_() if tap.nonnegative else values).requires_grad_(records)

    logits = draw("logits")
    return Output(logits, {name: logits if name == "logits" else draw(name) for name in reads})
