"""Short trainings to the end, whose results are compared bit by bit."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.bench.world import World
from kdbench.data.feed import Feed
from kdbench.engine.cohort import Interrupted, Lockstep
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.graphs import cuda, tape
from kdbench.engine.graphs.replayed import Recorder, Recording
from kdbench.engine.graphs.snapshot import state_of
from kdbench.engine.learner import Learner
from kdbench.errors import TrialError
from kdbench.recipe import Recipe
from kdbench.results import (
    AnyFolder,
    DataUsed,
    Environment,
    EpochRecord,
    Failure,
    TeacherResult,
    TrialFolder,
    TrialRecord,
)
from kdbench.results import TrialResult as Result
from kdbench.suite.schema import Engine

_numbers = itertools.count()


@dataclass(frozen=True)
class State:
    """All that a training has changed: tensors by name, and the records of its epochs without their times."""

    tensors: Mapping[str, Tensor]
    records: Sequence[EpochRecord]

    @classmethod
    def of(cls, learner: Learner) -> State:
        """Copies of a learner's weights, buffers, optimiser, average and sums."""
        tensors = {name: value.detach().cpu().clone() for name, value in state_of(learner.trainer).items()}
        return cls(tensors, [record.model_copy(update={"seconds": 0.0}) for record in learner.progress.records])

    def difference(self, other: State) -> dict[str, Any]:
        """The largest difference of two values and the tensor in which it is; empty if all bits are equal."""
        if self.tensors.keys() != other.tensors.keys():
            missing = sorted(self.tensors.keys() ^ other.tensors.keys())
            return {"largest_difference": math.inf, "in": f"{missing[0]}, which one of them lacks"}
        unlike = {
            name: _largest(value, other.tensors[name])
            for name, value in self.tensors.items()
            if not _same_bits(value, other.tensors[name])
        }
        if unlike:
            name = max(unlike, key=lambda name: unlike[name])
            return {"largest_difference": unlike[name], "in": name}
        # As text: a loss that is NaN in both is the same.
        if str([record.to_json() for record in self.records]) != str([record.to_json() for record in other.records]):
            return {"largest_difference": math.nan, "in": "the records of the epochs"}
        return {}


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    as_bytes = (value.contiguous().reshape(-1).view(torch.uint8) for value in (one, other))
    return torch.equal(*as_bytes)


def _largest(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    difference = (one.double() - other.double()).abs().amax().item()
    return math.inf if math.isnan(difference) else float(difference)


@dataclass
class Counted:
    """Makes recorders, and counts the replays of what each of them recorded."""

    make: Callable[[Sequence[Any]], Recorder]
    replays: list[int] = field(default_factory=list)
    """Of the teacher's passes, then of each stage of each learner in the order in which they began."""

    def __call__(self, generators: Sequence[Any]) -> Recorder:
        """What records, and counts."""
        record, place = self.make(generators), len(self.replays)
        self.replays.append(0)
        return lambda action: _Counting(record(action), self, place)


@dataclass
class _Counting:
    recording: Recording
    counted: Counted
    place: int

    def replay(self) -> None:
        self.counted.replays[self.place] += 1
        self.recording.replay()


class _Heard:
    """A listener that keeps results and failures."""

    def __init__(self) -> None:
        self.results: dict[str, Result | TeacherResult] = {}
        self.failures: dict[str, Failure] = {}

    def epoch(self, identifier: str, record: EpochRecord) -> None:
        """The learner keeps its records."""

    def finished(self, identifier: str, result: Result | TeacherResult) -> None:
        self.results[identifier] = result

    def failed(self, identifier: str, error: Failure) -> None:
        self.failures[identifier] = error


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Passes on each operation, as a tape does when it records."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


@dataclass
class Ended:
    """A cohort after its training."""

    states: Mapping[str, State]
    """Of the learners that did not fail, by identifier."""
    failures: Mapping[str, Failure]
    executed: Mapping[str, str | None]
    """By identifier: why the steps of the last stage were not replayed; None if they were, or were not to be."""
    replays: Sequence[int]
    """Those of the teacher's passes, then of each stage; empty if nothing was to be recorded."""


@dataclass
class Trainings:
    """Trainings on random images, with one recipe and one teacher."""

    world: World
    recipe: Recipe
    teacher: FrozenTeacher
    student: str
    _alone: dict[tuple[str, bool], State] = field(default_factory=dict, init=False)

    @cached_property
    def feed(self) -> Feed:
        """Batches of the recipe."""
        return self.world.feed(self.recipe)

    def learner(
        self,
        identifier: str,
        method: str,
        *,
        student: str = "",
        settings: Mapping[str, Any] | None = None,
        folder: AnyFolder | None = None,
    ) -> Learner:
        """A learner with all its stages, and a new folder if none is given."""
        if folder is None:
            folder = TrialFolder(self.world.folder / "correctness" / str(next(_numbers)))
            folder.begin(TrialRecord(id=identifier, teacher="t", student="s", method=method, label=method, seed=0))
        return self.world.learner(
            identifier,
            student or self.student,
            self.teacher,
            method,
            self.recipe,
            settings=settings,
            folder=folder,
            steps_per_epoch=self.feed.steps_per_epoch,
            main_only=False,
        )

    def alone(self, method: str, *, replayed: bool) -> State:
        """Learner ``a`` after a training without company or interruption; trained once."""
        key = method, replayed
        if key not in self._alone:
            self._alone[key] = self.run(self.learner("a", method), replayed=replayed).states["a"]
        return self._alone[key]

    def run(
        self,
        *learners: Learner,
        replayed: bool,
        traced: bool | None = None,
        stop: Callable[[], bool] = lambda: False,
        may_fail: bool = False,
    ) -> Ended:
        """Train to the end, or until ``stop`` is true after an epoch.

        ``traced``: whether operations pass through Python on a CPU, by default if steps are ``replayed``. There torch
        adds gradients out of place, as it does where a tape records, which may change last bits. A training that is
        compared with a replayed one must therefore be traced.
        Without ``may_fail``, raises :class:`~kdbench.errors.TrialError` if a learner fails.
        """
        traced = replayed if traced is None else traced
        device = self.world.device
        counted = Counted(partial(cuda.recorder, device) if device.type == "cuda" else lambda _: tape.record)
        heard = _Heard()
        # Of operations without a deterministic algorithm: a difference that they make is seen in the comparison.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lockstep = Lockstep(
                learners,
                self.feed,
                self.teacher,
                heard,
                data=DataUsed(name="random", fingerprint=""),
                environment=Environment(device=str(device)),
                checkpoint_every=1,
                stop=stop,
                engine=Engine(deterministic=True),
                make_recorder=counted if replayed else None,
            )
            with (
                _Dispatched() if traced and device.type == "cpu" else nullcontext(),  # type: ignore[no-untyped-call]
                suppress(Interrupted),
            ):
                lockstep.run()
        if heard.failures and not may_fail:
            identifier, failure = next(iter(heard.failures.items()))
            raise TrialError(f"{identifier}: {failure.message}")
        return Ended(
            states={one.id: State.of(one) for one in learners if one.error is None},
            failures=heard.failures,
            executed={one.id: getattr(heard.results.get(one.id), "executed", None) for one in learners},
            replays=counted.replays,
        )
