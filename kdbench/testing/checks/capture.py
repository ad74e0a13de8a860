"""Whether the steps of a method can be recorded once and replayed, as a CUDA graph does on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kdbench.data.feed import Minibatch
from kdbench.engine.graphs.replayed import Replayed
from kdbench.engine.graphs.slots import FixedOutputs, Slot
from kdbench.engine.graphs.snapshot import state_of
from kdbench.engine.graphs.tape import Trace, record
from kdbench.engine.learner import Learner
from kdbench.engine.stages import through
from kdbench.recipe import Part, Recipe
from kdbench.results import TrialFolder
from kdbench.seeding import derive
from kdbench.testing.bench import BATCH_SIZE, CLASSES, IMAGE_SHAPE, N_TRAIN, Bench
from kdbench.testing.checks.placement import host_sync
from kdbench.testing.subject import CheckFailed, CheckSkipped, Subject

EPOCHS = (0, 7)
"""Of a stage of ten: the rate, the epoch and the progress differ. In the first, a step is recorded."""
STEPS = 4


def capturable(subject: Subject) -> str | None:
    """Are all steps the same operations, so that a CUDA graph can record one and replay it?"""
    executed, replayed = _learner(subject), _learner(subject)
    teacher = subject.bench.network(subject.bench.teacher_name).eval()
    slot, outputs, counts = Slot(), FixedOutputs(None), []
    for phase, _ in zip(through(executed.trainer), through(replayed.trainer), strict=True):
        steps = Replayed(replayed.trainer, record)
        for epoch in EPOCHS:
            for learner in (executed, replayed):
                learner.progress.epoch = epoch
                learner.trainer.begin_epoch()
            steps.begin_epoch()
            for number, batch in enumerate(_batches(subject.bench, epoch)):
                minibatch = slot.put(batch)
                with torch.no_grad():
                    shown = outputs.show(
                        minibatch.images,
                        phase.teacher_reads,
                        lambda: teacher(minibatch.images, phase.teacher_reads),  # noqa: B023
                    )
                take = partial(steps.on_fixed_memory, compared=epoch > 0 and number == STEPS - 1)
                # Where operations are recorded, torch adds gradients out of place, which may change the last bits.
                with Trace():
                    executed.trainer.step(number, minibatch, shown)
                    replayed.trainer.step(number, minibatch, shown, take)
                if steps.reason is not None:
                    raise _refusal(subject, f"{phase.name}: {steps.reason}")
        _compare(phase.name, state_of(executed.trainer), state_of(replayed.trainer))
        counts.append(f"{phase.name}: {steps.operations} operations")
    return "; ".join(counts)


def _learner(subject: Subject) -> Learner:
    bench = subject.bench
    return Learner(
        identifier="check",
        network=bench.network(bench.student_name),
        student=bench.student,
        teacher=bench.teacher,
        method=subject.method(),
        recipe=Recipe(epochs=10, batch_size=BATCH_SIZE, lr=0.01, schedule=Part(name="cosine")),
        seed=0,
        folder=TrialFolder(Path("nowhere")),  # nothing is written without a call of save
        device=torch.device("cpu"),
        steps_per_epoch=STEPS,
        foreign=(),
    )


def _batches(bench: Bench, epoch: int) -> Iterator[Minibatch]:
    for number in range(STEPS):
        generator = torch.Generator().manual_seed(derive(0, "capture", epoch, number))
        images = torch.randn(BATCH_SIZE, *IMAGE_SHAPE, generator=generator)
        indices = torch.randperm(N_TRAIN, generator=generator)[:BATCH_SIZE]
        yield Minibatch(images, indices % CLASSES, indices)


def _compare(stage: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        if not torch.equal(value.nan_to_num(), found[name].nan_to_num()):
            raise CheckFailed(f"{stage}: replays do not give the same {name} as steps")


def _refusal(subject: Subject, reason: str) -> Exception:
    try:
        host_sync(subject)
    except CheckFailed:
        return CheckSkipped(f"{reason}; see host-sync")
    except CheckSkipped:
        pass
    return CheckFailed(reason)
