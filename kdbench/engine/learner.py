"""A learner: one student with its method, its optimiser, and what has been recorded of its training."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import isolation
from kdbench.data.feed import Minibatch
from kdbench.engine import checkpoint
from kdbench.engine.average import Average
from kdbench.engine.device import Precision, Stopwatch
from kdbench.engine.optimizer import begin_momentum, make_optimizer
from kdbench.engine.phase import Phase, Position, phases
from kdbench.errors import ResultsError, TrialError, in_words, text_of
from kdbench.method import Batch, Method, Output, Signature
from kdbench.models.base import TappedModel
from kdbench.models.weights import write_weights
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.results import AnyFolder, EpochRecord, Failure, parse
from kdbench.seeding import derive

NETWORK, METHOD = "network", "method"
PARTS = frozenset({NETWORK, METHOD, "optimizer", "schedule"})
"""The parts of a learner that third parties may provide."""


def outputs(raw: Mapping[str, Tensor], reads: Sequence[str]) -> Output:
    """What a method gets to see: float32 (or better) whatever the network's precision, and what it reads only."""
    return Output(at_least_float32(raw["logits"]), {name: at_least_float32(raw[name]) for name in reads})


def private(output: Output) -> Output:
    """A copy that nobody else sees."""
    return Output(output.logits.clone(), {name: value.clone() for name, value in output.taps.items()})


def at_least_float32(value: Tensor) -> Tensor:
    """``value`` in float32 where it is less."""
    return value.float() if value.dtype in {torch.float16, torch.bfloat16} else value


class Learner:
    """Trains one student; a cohort tells it when, and hands it the shared batch and teacher outputs."""

    def __init__(
        self,
        *,
        identifier: str,
        network: TappedModel,
        student: Signature,
        teacher: Signature,
        method: Method,
        recipe: Recipe,
        seed: int,
        folder: AnyFolder,
        device: torch.device,
        steps_per_epoch: int,
        settings: Mapping[str, Any] | None = None,
        made_with: Mapping[str, str] | None = None,
        stream: str = "",
        foreign: Collection[str] = (NETWORK, METHOD),
        parts: Parts | None = None,
    ) -> None:
        """``settings`` are the method's; ``made_with`` names the teacher's weights and the data, which a
        checkpoint must share; ``stream`` separates this learner's randomness from its neighbours'. ``foreign``
        says which of its parts, ``network``, ``method``, ``optimizer`` and ``schedule``, third parties provide: those
        get copies of what learners share. ``parts`` are the recipe's; without them, it has built-in ones alone.
        """
        self.id = identifier
        self.settings = dict(settings or {})
        self.made_with = dict(made_with or {})
        self._stream = stream
        self.foreign = frozenset(foreign)
        self.classes = student.classes
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.method = method.to(device)
        self.recipe = recipe
        self.parts = parts or Parts.of(recipe)
        self.folder = folder
        self.device = device
        self.steps_per_epoch = steps_per_epoch
        self.precision = Precision.choose(recipe.precision, device)
        self.modules = nn.ModuleDict({"network": self.network, "method": self.method})
        if self.foreign:
            _own_buffers(self.modules)
        self.average: Average | None = None
        self.phases = phases(method, self.parts, student, teacher)
        self.phase_index = 0
        self.epoch = 0
        self.records: list[EpochRecord] = []
        self.seconds = 0.0
        self.teacher_seconds = 0.0
        self.peak_memory_bytes: int | None = None
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.finished = False
        self.error: BaseException | None = None
        self.unwritable: ResultsError | None = None
        """Why its folder cannot be written, which is no fault of its plugins."""
        self.started = now()
        self.seed = seed
        self._generator = torch.Generator(device=device)
        self._watch = Stopwatch(device)
        self._sums: Tensor | None = None
        self._names: tuple[str, ...] = ()
        self._images = 0
        self._enter()
        self._leave_empty_stages()

    # ---- where it is

    @property
    def phase(self) -> Phase:
        """The stage it is in."""
        return self.phases[self.phase_index]

    @property
    def in_main(self) -> bool:
        """Whether the first stages are over."""
        return self.phase_index == len(self.phases) - 1

    @property
    def position(self) -> Position:
        """Where it is; learners at one position train in lockstep."""
        return Position(self.in_main, 0 if self.in_main else self.phase_index, self.epoch)

    @property
    def active(self) -> bool:
        """Whether it has still to train."""
        return not self.finished and self.error is None

    @property
    def suspect(self) -> str:
        """Which part to blame for what is wrong after one of its calls."""
        if len(self.foreign) == 1:
            return f"its {next(iter(self.foreign))}"
        return "its method or its network"

    # ---- training

    def _trained_modules(self) -> list[nn.Module]:
        modules: list[nn.Module] = []
        for name in self.phase.trains:
            if name in {"student", "student.body"}:
                modules.append(self.network)
            elif name == "method":
                modules.append(self.method)
            else:
                modules.append(self.method.get_submodule(name))
        return modules

    def _frozen_heads(self) -> list[nn.Module]:
        if "student.body" not in self.phase.trains:
            return []
        return [self.network.get_submodule(name) for name in self.network.head]

    def _enter(self) -> None:
        """Begin a phase: choose what is trained, with a fresh optimiser."""
        heads = {id(p) for head in self._frozen_heads() for p in head.parameters()}
        trained = {id(p) for module in self._trained_modules() for p in module.parameters()} - heads
        self._trainable = {key: p.requires_grad for key, p in self.modules.named_parameters()}
        # What the method froze itself stays frozen.
        parameters = {key: p for key, p in self.modules.named_parameters() if id(p) in trained and p.requires_grad}
        for parameter in self.modules.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        spared = {f"network.{name}" for name in self.network.no_weight_decay()}
        self.optimizer = make_optimizer(self.parts, parameters, self.phase.rate(0.0), spared)
        if self.in_main and self.recipe.ema_decay is not None:
            self.average = Average(self._predicting(), self.recipe.ema_decay)

    def begin_epoch(self) -> None:
        """Set module modes and the epoch's randomness."""
        self.modules.eval()
        for module in self._trained_modules():
            module.train()
        for head in self._frozen_heads():
            head.eval()
        self._generator.manual_seed(derive(self.seed, "method", self.phase.name, self.epoch))
        self._sums = None
        self._images = 0

    def _seed_globally(self, *purpose: object) -> None:
        isolation.seed_globally(derive(self.seed, *purpose), self.device, foreign=bool(self.foreign))

    def step(self, number: int, minibatch: Minibatch, teacher: Mapping[str, Tensor] | None) -> None:
        """One optimiser step on a batch. Nothing here waits for the device."""
        phase = self.phase
        progress = self.epoch + number / self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(progress)
        self.optimizer.zero_grad(set_to_none=True)
        # Not at the first step, where libraries try out their algorithms and the optimiser makes its state.
        late = (self.epoch, number) > (0, 0)
        measure = self.device.type == "cuda" and late and number == min(1, self.steps_per_epoch - 1)
        base = _reset_peak(self.device) if measure else 0
        self._watch.start()
        # Dropout, drop path and plugins that draw without a generator get a stream of their own.
        # A stage without the student is the same for all that share it.
        own = self._stream if phase.uses_student else ""
        self._seed_globally("network", own, phase.name, self.epoch, number)
        if self.foreign:
            shared = {name: value for name, value in vars(minibatch).items() if value is not None}
            kept = shared if NETWORK in self.foreign else {k: v for k, v in shared.items() if k != "images"}
            minibatch = replace(minibatch, **{name: value.clone() for name, value in kept.items()})
        batch = Batch(
            minibatch.labels,
            minibatch.indices,
            torch.full((), float(self.epoch), device=self.device),
            torch.full((), progress / phase.epochs, device=self.device),
            self._generator,
            minibatch.mixed_labels,
            minibatch.mix,
            self.recipe.label_smoothing,
        )
        seen = None
        if phase.uses_student:
            with self.precision.autocast():
                seen = outputs(self.network(minibatch.images, phase.student_reads), phase.student_reads)
        needed = self.method.needs_teacher or not self.in_main
        shown = outputs(teacher, phase.teacher_reads) if teacher is not None and needed else None
        if shown is not None and self.foreign:
            shown = private(shown)
        # A stage without the student, or a training without a teacher, says so in its own signature.
        terms = phase.loss(seen, shown, batch)  # type: ignore[arg-type]
        values, loss = self._weigh(terms)
        torch.autograd.backward(loss)
        if self.recipe.clip_grad_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_grad_norm, foreach=True)
        begin_momentum(self.optimizer)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        if self.in_main and seen is not None and type(self.method).after_step is not Method.after_step:
            with torch.no_grad():
                self.method.after_step(_detached(seen), shown, batch)  # type: ignore[arg-type]
        count = len(minibatch.labels)
        recorded = torch.stack([loss.detach().double(), *(v.detach().double() for v in values)]) * count
        self._sums = recorded if self._sums is None else self._sums + recorded
        self._images += count
        self._watch.stop()
        if measure:
            peak = torch.cuda.max_memory_allocated(self.device) - base + self._own_bytes()
            self.peak_memory_bytes = max(self.peak_memory_bytes or 0, peak)

    def _weigh(self, terms: Any) -> tuple[list[Tensor], Tensor]:
        if not isinstance(terms, Mapping) or not terms:
            raise TrialError(f"forward must return named terms, got {type(terms).__name__}")
        values, loss = [], None
        named = {str.__str__(name) if isinstance(name, str) else name: term for name, term in terms.items()}
        for name, term in named.items():
            if not isinstance(name, str):
                raise TrialError(f"forward must name its terms by strings, got a name of type {type(name).__name__}")
            if not (isinstance(term, tuple) and len(term) == 2 and isinstance(term[0], Tensor)):
                raise TrialError(f"term '{name}' must be a pair (value, weight), got {type(term).__name__}")
            value, weight = term
            if value.ndim:
                raise TrialError(f"term '{name}' must be a scalar, got shape {tuple(value.shape)}")
            values.append(value)
            loss = value * weight if loss is None else loss + value * weight
        assert loss is not None
        if self._sums is not None and tuple(named) != self._names:
            raise TrialError(f"terms changed within an epoch from {list(self._names)} to {list(named)}")
        self._names = tuple(named)
        return values, loss

    def _own_bytes(self) -> int:
        tensors = [*self.modules.parameters(), *self.modules.buffers()]
        tensors += self.average.tensors if self.average is not None else []
        tensors += [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def lap(self) -> float:
        """Seconds spent in steps since the last call; waits for the device."""
        return self._watch.read()

    def end_epoch(self, seconds: float, teacher_seconds: float) -> EpochRecord:
        """The epoch's record, before anything is measured; reads the device once.

        A loss that is not finite is left in it to be seen.
        """
        assert self._sums is not None
        means = (self._sums / self._images).tolist()
        self.seconds += seconds
        self.teacher_seconds += teacher_seconds
        return EpochRecord(
            epoch=self.epoch + 1,
            stage=self.phase.name,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            train_loss=means[0],
            terms=dict(zip(self._names, means[1:], strict=True)),
            seconds=seconds,
        )

    def advance(self) -> None:
        """Go on to the next epoch, and to the next stage where this one has ended."""
        self.epoch += 1
        if self.epoch < self.phase.epochs:
            return
        if self.in_main:
            self.finished = True
            return
        self._end_stage()
        self._leave_empty_stages()
        self.epoch = 0

    def _leave_empty_stages(self) -> None:
        """A first stage of no epochs, as settings may have it, is over at once."""
        while not self.in_main and self.phase.epochs == 0:
            self._end_stage()

    def _end_stage(self) -> None:
        name = self.phase.name
        for key, parameter in self.modules.named_parameters():
            parameter.requires_grad_(self._trainable.get(key, True))
        self._seed_globally("after", self._stream, name)
        self.method.after_stage(name)
        self.phase_index += 1
        self._enter()

    def follow(self, leader: Learner) -> None:
        """Take over what ``leader`` learned in a stage that both share."""
        for name in self.phase.trains:
            self.method.get_submodule(name).load_state_dict(leader.method.get_submodule(name).state_dict())
        self.optimizer.load_state_dict(leader.optimizer.state_dict())
        self._sums, self._images, self._names = leader._sums, leader._images, leader._names

    def shares_stage_with(self, other: Learner) -> bool:
        """Whether both would learn the very same in this stage: no student, equal settings, equal state."""
        mine, yours = self.phase, other.phase
        if mine.uses_student or yours.uses_student or type(self.method) is not type(other.method):
            return False
        if (mine.name, mine.trains, mine.epochs, mine.rate(0.0)) != (
            yours.name,
            yours.trains,
            yours.epochs,
            yours.rate(0.0),
        ):
            return False
        fields = ("optimizer", "momentum", "nesterov", "weight_decay", "clip_grad_norm", "label_smoothing")
        if any(getattr(self.recipe, f) != getattr(other.recipe, f) for f in fields):
            return False
        if (self.settings, self.made_with) != (other.settings, other.made_with):
            return False
        return all(
            _equal(self.method.get_submodule(n).state_dict(), other.method.get_submodule(n).state_dict())
            for n in mine.trains
        )

    def fail(self, error: BaseException) -> Failure:
        """Give up, and give the memory back; the next run tries again."""
        self.error = error
        record = failure(self.id, error, self.phase.name, self.epoch + 1)
        if isinstance(error, torch.OutOfMemoryError):
            message = f"out of memory on {self.device}; try a smaller recipe.batch_size"
            record = record.model_copy(update={"message": message, "why": message})
        self.folder.fail(record)
        # The traceback's frames hold the step's activations.
        for name in ("__traceback__", "__context__", "__cause__"):
            BaseException.__setattr__(error, name, None)
        del self.modules, self.network, self.method, self.optimizer, self.phases
        self.average = self.best = None
        return record

    # ---- predicting

    def _predicting(self) -> nn.ModuleDict:
        """What the student predicts with: the network, and the method's parts that belong to the student."""
        parts = {part.replace(".", "/"): self.method.get_submodule(part) for part in self.method.part_of_student}
        return nn.ModuleDict({"network": self.network, **parts})

    @contextmanager
    def _deployed(self) -> Iterator[None]:
        """Lend the student the averaged weights, where the recipe averages; evaluated and saved are those."""
        if self.average is None:
            yield
            return
        own = self._predicting()
        kept = {key: value.clone() for key, value in own.state_dict().items()}
        own.load_state_dict(self.average.deployed_state())
        try:
            yield
        finally:
            own.load_state_dict(kept)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """While this lasts, :meth:`predict` gives what the student is evaluated by."""
        self.modules.eval()
        with self._deployed():
            yield

    def predict(self, images: Tensor) -> Tensor:
        """The logits (B, C) of images (B, channels, H, W), computed in float32: bf16's would often be tied.

        Raises :class:`~kdbench.errors.TrialError` where the method gives something else.
        """
        reads = self.phases[-1].student_reads
        if self.foreign:
            self._seed_globally("predict", self._stream, self.phase.name, self.epoch)
        with torch.no_grad():
            images = images.clone() if NETWORK in self.foreign else images
            logits = self.method.predict(outputs(self.network(images, reads), reads))
            wanted = len(images), self.classes
            if not isinstance(logits, Tensor):
                raise TrialError(f"predict must return logits of shape {wanted}, got {type(logits).__name__}")
            if tuple(logits.shape) != wanted or not logits.is_floating_point():
                got = f"{logits.dtype} of shape {tuple(logits.shape)}"
                raise TrialError(f"predict must return floating-point logits of shape {wanted}, got {got}")
            if logits.device != images.device:
                raise TrialError(f"predict must return logits on {images.device}, got them on {logits.device}")
            # A copy: the method may write into its own tensor at the next batch.
            return logits.float().clone() if self.foreign else logits.float()

    def student_state(self) -> dict[str, Tensor]:
        """The student's weights: the network's, and under ``method.`` what it predicts with beside them."""
        with self._deployed():
            state = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
            for part in self.method.part_of_student:
                for key, value in self.method.get_submodule(part).state_dict().items():
                    state[f"method.{part}.{key}"] = value.detach().clone()
        return {key: value.contiguous() for key, value in state.items()}

    def consider(self, validation_top1: float) -> None:
        """Keep the weights if this epoch is the best on the validation split (the earlier one of equals)."""
        if self.best is None or validation_top1 > self.best[0]:
            state = {key: value.cpu() for key, value in self.student_state().items()}
            self.best = (validation_top1, self.epoch + 1, state)

    def write_student(self) -> None:
        """Write ``student.safetensors``."""
        state = self.best[2] if self.best is not None else {k: v.cpu() for k, v in self.student_state().items()}
        with self.writing():
            write_weights(self.folder.weights, state)

    def parameter_counts(self) -> dict[str, int]:
        """The student's parameters (with what it predicts with), those trained, and those of adapters."""
        parts = [self.method.get_submodule(name) for name in self.method.part_of_student]
        student = {id(p): p for m in (self.network, *parts) for p in m.parameters()}
        adapters = {id(p): p for p in self.method.parameters() if id(p) not in student}
        # After the last step: what a first stage alone trained has no gradient in the main one.
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return {
            "student_parameters": sum(p.numel() for p in student.values()),
            "trained_parameters": sum(p.numel() for p in trained),
            "adapter_parameters": sum(p.numel() for p in adapters.values()),
        }

    # ---- going on later

    def save(self) -> None:
        """Write a checkpoint of an epoch's end."""
        state = {
            "phase_index": self.phase_index,
            "epoch": self.epoch,
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "records": [record.to_json() for record in self.records],
            "seconds": self.seconds,
            "teacher_seconds": self.teacher_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "best": self.best,
            "started": self.started,
            "made_with": self.made_with,
        }
        with self.writing():
            checkpoint.save(self.folder.checkpoint, self.id, state)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around writing to the folder: tells the disk's errors from those that a plugin may raise."""
        try:
            yield
        except ResultsError as error:
            self.unwritable = error
            raise

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is a sound one, made with the same teacher and data."""
        state = checkpoint.load(self.folder.checkpoint, self.id)
        if state is None or state.get("made_with") != self.made_with:
            return False
        while self.phase_index < state["phase_index"]:
            self._end_stage()
        self.modules.load_state_dict(state["modules"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        self.records = [_read_epoch(record) for record in state["records"]]
        self.seconds = state["seconds"]
        self.teacher_seconds = state["teacher_seconds"]
        self.peak_memory_bytes = state["peak_memory_bytes"]
        self.best = state["best"]
        self.started = state["started"]
        return True


def failure(identifier: str, error: BaseException, stage: str, epoch: int) -> Failure:
    """What is recorded of an error. ``epoch`` 0 is before the first."""
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException as second:  # noqa: BLE001 - formatting runs a plugin's code
        trace = f"(cannot be formatted: {type(second).__name__})"
    return Failure(
        id=identifier,
        stage=stage,
        epoch=epoch,
        type=type(error).__name__,
        message=text_of(error) or type(error).__name__,
        why=in_words(error),
        traceback=trace.encode("utf-8", "backslashreplace").decode("utf-8"),
        when=now(),
    )


def _read_epoch(content: Mapping[str, Any]) -> EpochRecord:
    record, problem = parse(EpochRecord, content)
    if record is None:
        raise TrialError(f"the checkpoint's record of an epoch cannot be read: {problem}")
    return record


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _own_buffers(module: nn.Module) -> None:
    """Copy the buffers, as moving to a GPU does: a plugin may register one constant in all of its instances."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.clone()


def _detached(output: Output) -> Output:
    return Output(output.logits.detach(), {name: value.detach() for name, value in output.taps.items()})


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _reset_peak(device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
