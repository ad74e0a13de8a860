"""A learner: the training of one student in a cohort, and its results folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kdbench.engine import checkpoint
from kdbench.engine.failure import failure, forget_frames
from kdbench.engine.phase import Position
from kdbench.engine.progress import Progress
from kdbench.engine.stages import Stages
from kdbench.engine.student import METHOD, NETWORK, StudentInTraining
from kdbench.engine.trainer import Trainer
from kdbench.errors import ResultsError
from kdbench.method import Method, Signature
from kdbench.models.base import TappedModel
from kdbench.models.weights import write_weights
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.results import AnyFolder, EpochRecord, Failure, write_correct


class Learner:
    """One training of a cohort. The cohort calls its steps, with the shared batch and the teacher's outputs."""

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
        """``settings`` are the method's. ``made_with`` identifies the teacher's weights and the data; a checkpoint
        with other values is not used. ``stream`` separates this learner's random numbers from those of the others.
        ``foreign`` lists the parts (``network``, ``method``, ``optimizer``, ``schedule``) that come from third-party
        plugins; these get copies of shared tensors. ``parts`` are the recipe's; the default is built-in parts only.
        """
        self.id = identifier
        self.settings = dict(settings or {})
        self.made_with = dict(made_with or {})
        self.recipe = recipe
        parts = parts or Parts.of(recipe)
        self.folder = folder
        self.progress = Progress()
        self.student = StudentInTraining(network, method, device, classes=student.classes, foreign=foreign)
        self.foreign = self.student.foreign
        stages = Stages(method, parts, student, teacher, network=network, progress=self.progress)
        self.trainer = Trainer(
            self.student, stages, parts, seed=seed, stream=stream, device=device, steps_per_epoch=steps_per_epoch
        )
        self.correct: Tensor | None = None
        """Which test images it classified correctly at the last evaluation: (N,) booleans on the device."""
        self.finished = False
        self.error: BaseException | None = None
        self.unwritable: ResultsError | None = None
        """The error of writing to its folder, if any; not caused by its plugins."""

    # ---- position

    @property
    def position(self) -> Position:
        """Its stage and epoch; learners at the same position train in lockstep."""
        in_main = self.trainer.in_main
        return Position(in_main, 0 if in_main else self.progress.phase_index, self.progress.epoch)

    @property
    def active(self) -> bool:
        """Whether its training has not ended."""
        return not self.finished and self.error is None

    @property
    def suspect(self) -> str:
        """The part that is named as the cause of an error after one of its calls."""
        if len(self.foreign) == 1:
            return f"its {next(iter(self.foreign))}"
        return "its method or its network"

    # ---- epochs

    @property
    def is_evaluated(self) -> bool:
        """Whether the recipe evaluates the student after this epoch of the main stage."""
        epoch = self.progress.epoch + 1
        return epoch % self.recipe.evaluate_every == 0 or epoch == self.trainer.phase.epochs

    def end_epoch(self, seconds: float, teacher_seconds: float) -> EpochRecord:
        """The epoch's record, before evaluation; reads the device once.

        A loss that is not finite is recorded unchanged.
        """
        loss, terms = self.trainer.means()
        self.progress.seconds += seconds
        self.progress.teacher_seconds += teacher_seconds
        return EpochRecord(
            epoch=self.progress.epoch + 1,
            stage=self.trainer.phase.name,
            lr=self.trainer.lr,
            train_loss=loss,
            terms=terms,
            seconds=seconds,
        )

    def advance(self) -> None:
        """Begin the next epoch, or the next stage if this one has ended."""
        self.progress.epoch += 1
        if self.progress.epoch < self.trainer.phase.epochs:
            return
        if self.trainer.in_main:
            self.finished = True
        else:
            self.trainer.leave()

    def fail(self, error: BaseException) -> Failure:
        """End the training with an error, and free its memory; the next run tries again."""
        self.error = error
        record = failure(self.id, error, self.trainer.phase.name, self.progress.epoch + 1)
        if isinstance(error, torch.OutOfMemoryError):
            message = f"out of memory on {self.trainer.device}; try a smaller recipe.batch_size"
            record = record.model_copy(update={"message": message, "why": message})
        self.folder.fail(record)
        forget_frames(error)
        del self.student, self.trainer
        self.progress.best = self.progress.best_correct = self.correct = None
        return record

    # ---- the student

    def predict(self, images: Tensor) -> Tensor:
        """The logits (B, C) of images (B, channels, H, W); see :meth:`StudentInTraining.predict`."""
        self.trainer.seed_prediction()
        return self.student.predict(images, self.trainer.stages.phases[-1].student_reads)

    def parameter_counts(self) -> dict[str, int]:
        """See :meth:`StudentInTraining.parameter_counts`."""
        return self.student.parameter_counts(self.trainer.stages.trained.values())

    def consider(self, validation_top1: float) -> None:
        """Keep the weights if this epoch is the best on the validation split (the earlier one of equals)."""
        if self.progress.best is None or validation_top1 > self.progress.best[0]:
            self.progress.best = validation_top1, self.progress.epoch + 1, self._weights()
            self.progress.best_correct = self.correct.cpu() if self.correct is not None else None

    def _weights(self) -> dict[str, Tensor]:
        return {key: value.cpu() for key, value in self.student.weights().items()}

    # ---- the folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Context for writing to the folder: separates errors of the disk from errors of plugins."""
        try:
            yield
        except ResultsError as error:
            self.unwritable = error
            raise

    def write_student(self) -> None:
        """Write the weights of the reported epoch, and which test images they classify correctly."""
        best = self.progress.best
        weights = best[2] if best is not None else self._weights()
        correct = self.progress.best_correct if best is not None else self.correct
        with self.writing():
            write_weights(self.folder.weights, weights, self.folder.check)
            if correct is not None:
                write_correct(self.folder.correct, correct.cpu().numpy(), self.folder.check)

    def _stateful(self) -> dict[str, Any]:
        """The objects whose states a checkpoint contains, by entry; None if not in use."""
        return {
            "modules": self.trainer.modules,
            "average": self.student.average,
            "optimizer": self.trainer.optimizer,
        }

    def save(self) -> None:
        """Write a checkpoint at the end of an epoch."""
        states = {name: part.state_dict() if part is not None else None for name, part in self._stateful().items()}
        state = {**self.progress.state_dict(), **states, "made_with": self.made_with}
        with self.writing():
            checkpoint.save(self.folder.checkpoint, self.id, state, self.folder.check)

    def resume(self) -> bool:
        """Resume from the checkpoint if it is valid and was made with the same teacher and data."""
        state = checkpoint.load(self.folder.checkpoint, self.id)
        if state is None or state.get("made_with") != self.made_with:
            return False
        while self.progress.phase_index < state["phase_index"]:
            self.trainer.leave()
        for name, part in self._stateful().items():
            if part is not None and state[name] is not None:
                part.load_state_dict(state[name])
        self.progress.load_state_dict(state)
        return True
