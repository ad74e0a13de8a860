"""Calls into plugins: an error in plugin code fails only the learners that use the plugin.

:mod:`kdbench.isolation` lists the changes to the process that are detected and undone after a call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from kdbench import isolation
from kdbench.engine.device import responds
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.errors import DeviceLostError, TrialError, in_words
from kdbench.results import Failure


class Guard:
    """Runs the plugin code of learners and of their teacher, and marks the learners that caused an error as failed."""

    def __init__(
        self,
        learners: Sequence[Learner],
        teacher: FrozenTeacher | None,
        *,
        failed: Callable[[str, Failure], None],
        stop: Callable[[], bool],
        watchful: bool,
        modules: Collection[str] = (),
    ) -> None:
        """``failed`` gets each learner that fails. ``stop`` returns whether Ctrl-C was pressed before.

        ``watchful`` looks for replaced functions after each call of a plugin, instead of once per epoch. ``modules``
        are modules of other plugins whose functions must not be replaced.
        """
        self.watchful = watchful
        self.withdrawn: list[Learner] = []
        """Learners that must be retrained from their checkpoints: a function was replaced during an epoch."""
        self.replaced: list[str] = []
        """The replaced functions."""
        self._failed = failed
        self._stop = stop
        self._device = learners[0].trainer.device
        self._teacher_is_foreign = teacher is not None and teacher.foreign
        self._originals = isolation.Originals(_modules(learners, teacher) | {*modules})

    def call(self, learner: Learner, action: Callable[[], object], *, thorough: bool = False) -> None:
        """Run plugin code of a learner; an error fails only this learner.

        ``thorough`` also looks for replaced functions if the learner uses third-party plugins.
        """
        if learner.error is not None:
            return
        thorough = (thorough or self.watchful) and bool(learner.foreign)
        error = self.attempt(action, learner.suspect, thorough=thorough)
        if learner.unwritable is not None and error is learner.unwritable:
            raise learner.unwritable  # the disk's error concerns all learners
        if error is not None:
            self.expel(learner, error)

    def attempt(self, action: Callable[[], object], who: str, *, thorough: bool = False) -> BaseException | None:
        """Run ``action`` and undo the changes that it left in the process. Returns the error, if any.

        Raises only ``KeyboardInterrupt``, after Ctrl-C was pressed twice.
        """
        before = isolation.state()
        error: BaseException | None = None
        try:
            action()
        except BaseException as raised:
            if isinstance(raised, KeyboardInterrupt) and self._stop():
                raise
            error = raised
        changed = isolation.undo(before)
        if thorough:
            changed += self._originals.undo()
        if not changed:
            return error
        what = f"{who} {isolation.complaint(changed)}"
        return TrialError(what if error is None else f"{in_words(error)}; {what}")

    def expel(self, learner: Learner, error: BaseException) -> None:
        """Mark a learner as failed."""
        before = isolation.state()
        record = learner.fail(error)
        # Freeing a plugin's memory may change the state again, for example by closing an open context.
        isolation.undo(before)
        self._failed(learner.id, record)
        if isinstance(error, torch.AcceleratorError) and not responds(self._device):
            # The device is lost to this process, and another learner may be the cause.
            raise DeviceLostError(
                f"{self._device} stopped working while {learner.id} was trained: {record.message}; saved "
                "results are safe: run again; if it happens again, select the other methods with --method"
            ) from None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def expel_from_images(self, learners: Sequence[Learner]) -> None:
        """Fail a learner that wrote into the images, and those that would read them after it.

        Only built-in networks share the images. No copy is kept: it would cost time in every step of every cohort.
        """
        writer, *others = learners
        self.call(writer, refuse_writing)
        for other in others:
            if other.active:
                why = f"{writer.id} wrote into the images of a batch before they reached this student"
                self.expel(other, TrialError(why))

    def withdraw_if_replaced(self, learners: Sequence[Learner]) -> None:
        """Handle functions that were replaced during an epoch, at an unknown time and by an unknown learner.

        All learners of the epoch are withdrawn and retrained from their checkpoints by a watchful cohort, which
        finds the cause. If that fails, the learners that use third-party plugins fail.
        """
        replaced = self._originals.undo()
        if not replaced:
            return
        self.replaced = replaced
        active = [learner for learner in learners if learner.active]
        suspects = [learner for learner in active if learner.foreign] or active
        alone = len(active) == 1 and not self._teacher_is_foreign
        for learner in active:
            if alone or (self.watchful and learner in suspects):
                others = "" if len(suspects) == 1 else ", or another plugin,"
                self.expel(learner, TrialError(f"{learner.suspect}{others} {isolation.complaint(replaced)}"))
            else:
                learner.error = TrialError(f"withdrawn: a plugin {isolation.complaint(replaced)}")
                self.withdrawn.append(learner)

    def refuse_sharing(self, learners: Sequence[Learner]) -> None:
        """Fail learners that share a parameter, for example if a plugin stores an adapter in its class or module."""
        owners: dict[int, tuple[Learner, str]] = {}
        for learner in learners:
            for name, tensor in learner.trainer.modules.named_parameters():
                place = tensor.untyped_storage().data_ptr()
                owner, theirs = owners.setdefault(place, (learner, name)) if place else (learner, name)
                if owner is learner:
                    continue
                for guilty, what, other in ((learner, name, owner), (owner, theirs, learner)):
                    if guilty.error is None:
                        what = f"its '{what}' is the very tensor that {other.id} trains; make one for each instance"
                        self.expel(guilty, TrialError(what))
                break


def refuse_writing() -> None:
    """Raise the error of a learner that wrote into shared tensors."""
    raise TrialError("it wrote into the teacher's outputs or the batch, which all students share; clone them first")


def _modules(learners: Sequence[Learner], teacher: FrozenTeacher | None) -> set[str]:
    """The modules of the plugins in use, which must not patch each other."""
    parts = [part for learner in learners for part in (learner.student.network, learner.student.method)]
    parts += [teacher.network] if teacher is not None else []
    return {cls.__module__ for part in parts for cls in type(part).__mro__}
