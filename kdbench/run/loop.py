"""Trains what a process can claim, one part of a cohort after another."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from kdbench.claims import ClaimLostError, HeldError, Holder, listed
from kdbench.engine.cohort import Interrupted
from kdbench.errors import KdbenchError, TrialError
from kdbench.results import TEACHERS, Failure
from kdbench.results.state import with_results
from kdbench.run.context import Context
from kdbench.run.students import CONCERNS_ALL, Students
from kdbench.run.teachers import Teachers
from kdbench.run.work import Part, Work, died
from kdbench.suite.plan import TeacherPlan
from kdbench.words import plural

POLL_SECONDS = 2.0
"""At least, between two looks for free trials."""
POLLS_APART = 5
"""So many times as long as a look itself takes."""


class Loop:
    """The training loop of one process."""

    def __init__(self, context: Context, *, allow_teacher_mismatch: bool, parts: int, wait: bool) -> None:
        """``wait``: stay until no other process trains chosen trials."""
        self.context = context
        self.teachers = Teachers(context, allow_teacher_mismatch)
        self.students = Students(context, self.teachers)
        self.parts = parts
        self.wait = wait

    def __call__(self, chosen: Collection[str], failures: Mapping[str, Failure | None]) -> None:
        """Train the ``chosen`` trials until nothing is left to claim. ``failures``: see :class:`Work`.

        Raises :class:`Interrupted` if the user requests a stop while trials are left.
        """
        self.teachers.known_failures = failures
        adoptable = self.students.adoption.trainings
        work = Work(self.context.claims, self.context.folder, chosen, failures, self._prepare, self.parts, adoptable)
        said = False
        while True:
            looked = time.monotonic()
            plan = with_results(self.context.opened.plan, self.context.folder)
            if self.context.stop.asked() and work.open(plan):
                raise Interrupted("interrupted")
            if part := work.take(plan):
                said = False
                self._train(part, work)
            elif (
                work.awaited
                or work.shared
                or (work.elsewhere and (self.wait or self.context.claims.is_uncertain(work.elsewhere.values())))
            ):
                if not said:
                    self.context.warn(_waits_for(work))
                said = True
                # A large suite on a slow file system must not be read all the time.
                time.sleep(max(POLL_SECONDS, POLLS_APART * (time.monotonic() - looked)))
            elif work.contested:
                time.sleep(POLL_SECONDS / 4)
            else:
                return

    def _train(self, part: Part, work: Work) -> None:
        try:
            if part.deaths:
                self.students.fail(part, TrialError(died(part.deaths)))
            else:
                self.students.train(part, work.add)
        except ClaimLostError as error:
            self.context.warn(f"{error}; this process leaves the cohort {part.cohort.name}")
        except HeldError:
            pass  # its teacher is being retrained
        except KdbenchError:
            raise
        except Exception:
            # As after a crash: what is not released counts as a death, so that it is not tried for ever.
            part.claims.clear()
            raise
        finally:
            part.release()

    def obtain(self, key: str, failures: Mapping[str, Failure | None]) -> None:
        """Train a teacher if it is missing, or wait until another process has trained it."""
        self.teachers.known_failures = failures
        teacher = next(one for one in self.context.opened.plan.teachers if one.key == key)
        while not self.context.stop.asked():
            try:
                self._prepare(teacher)
                return
            except HeldError:
                time.sleep(POLL_SECONDS)

    def _prepare(self, teacher: TeacherPlan) -> None:
        """Make a teacher available, unless another process trains it; its failure is told by the trials."""
        try:
            self.teachers(teacher)
        except ClaimLostError as error:
            self.context.warn(f"teacher {teacher.shown}: {error}")
            holder = self.context.claims.standing(TEACHERS, teacher.key).holder
            raise HeldError(teacher.shown, holder or Holder("", "another machine", 0, "", 0.0)) from None
        except (HeldError, *CONCERNS_ALL):
            raise
        except (Exception, SystemExit):  # noqa: BLE001, S110 - raised again where the trials are trained
            pass


def _waits_for(work: Work) -> str:
    if work.awaited:
        teachers = (f"{holder} trains teacher {name}" for name, holder in work.awaited.items())
        return f"{', '.join(teachers)}; waiting"
    if work.shared:
        students = (f"{holder} trains {name}" for name, holder in work.shared.items())
        return f"{', '.join(students)}, whose result other trials share; waiting"
    return f"{plural(len(work.elsewhere), 'trial')} in training by {listed(work.elsewhere)}; waiting"
