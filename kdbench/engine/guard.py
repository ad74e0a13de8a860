"""Calls into plugins: what goes wrong in one is the failure of whoever provides it, and of nobody else.

See :mod:`kdbench.isolation` for what a call may leave changed in the process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from kdbench import isolation
from kdbench.engine.device import responds
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.errors import KdbenchError, TrialError, in_words
from kdbench.results import Failure


class Guard:
    """Runs the parts of learners and of their teacher, and lets those fail that are to blame."""

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
        """``failed`` hears of each learner that fails. ``stop`` is whether Ctrl-C was pressed before.

        ``watchful`` looks for replaced functions after each call of a plugin, instead of once an epoch. ``modules`` are
        those of other plugins whose functions must not be replaced.
        """
        self.watchful = watchful
        self.withdrawn: list[Learner] = []
        """Those that must be trained again from their checkpoints: a neighbour replaced a function under them."""
        self.replaced: list[str] = []
        """Those functions."""
        self._failed = failed
        self._stop = stop
        self._device = learners[0].trainer.device
        self._teacher_is_foreign = teacher is not None and teacher.foreign
        self._originals = isolation.Originals(_modules(learners, teacher) | {*modules})

    def call(self, learner: Learner, action: Callable[[], object], *, thorough: bool = False) -> None:
        """Run a learner's part; what is wrong in or after it is its own failure, not the cohort's.

        ``thorough`` looks for replaced functions, too, where third parties take part.
        """
        if learner.error is not None:
            return
        thorough = (thorough or self.watchful) and bool(learner.foreign)
        error = self.attempt(action, learner.suspect, thorough=thorough)
        if learner.unwritable is not None and error is learner.unwritable:
            raise learner.unwritable  # nothing can be written: no fault of the learner, and it concerns all of them
        if error is not None:
            self.expel(learner, error)

    def attempt(self, action: Callable[[], object], who: str, *, thorough: bool = False) -> BaseException | None:
        """Run ``action`` and undo what it left changed in the process; gives what went wrong, and raises nothing.

        But for ``KeyboardInterrupt`` after Ctrl-C was pressed twice.
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
        """Let a learner fail."""
        before = isolation.state()
        record = learner.fail(error)
        # What a plugin left open may change the state once more when its memory is freed.
        isolation.undo(before)
        self._failed(learner.id, record)
        if isinstance(error, torch.AcceleratorError) and not responds(self._device):
            # Nothing works on the device any more in this process, and the blame may be another learner's.
            raise KdbenchError(
                f"{self._device} stopped working while {learner.id} was trained: {record.message}; what is "
                "saved is safe: run again, and leave a method out with --method if it happens again"
            ) from None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def expel_from_images(self, learners: Sequence[Learner]) -> None:
        """Fail a learner that wrote into the images, and those that were to read them after it.

        Only networks of kdbench itself share the images. No copy is kept: it would cost every step of every cohort.
        """
        writer, *others = learners
        self.call(writer, refuse_writing)
        for other in others:
            if other.active:
                why = f"{writer.id} wrote into the images of a batch before they reached this student"
                self.expel(other, TrialError(why))

    def withdraw_if_replaced(self, learners: Sequence[Learner]) -> None:
        """Replaced functions that appear within an epoch: nobody knows since when, and under whom.

        All learners of the epoch are withdrawn, to be trained again from their checkpoints by a watchful cohort, which
        finds out who it was. Where that did not help, those fail that third parties provide.
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
        """Fail learners that share a parameter, as when a plugin keeps an adapter in its class or module."""
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
    """Fail, as a learner that wrote into what all of them share."""
    raise TrialError("it wrote into the teacher's outputs or the batch, which all students share; clone them first")


def _modules(learners: Sequence[Learner], teacher: FrozenTeacher | None) -> set[str]:
    """The modules of the plugins that take part, which must not patch each other."""
    parts = [part for learner in learners for part in (learner.student.network, learner.student.method)]
    parts += [teacher.network] if teacher is not None else []
    return {cls.__module__ for part in parts for cls in type(part).__mro__}
