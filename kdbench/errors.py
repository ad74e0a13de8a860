"""Expected errors: each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

from kdbench.words import one_line, plural

_LISTED = 60
"""So many known names are listed at most."""


class KdbenchError(Exception):
    """Base of every expected error; the command line prints it without a traceback."""


class SuiteError(KdbenchError):
    """A suite file that cannot be used. Carries every problem found, not only the first."""

    def __init__(self, problems: Iterable[str]) -> None:
        # A name from a file may hold anything; a problem is one line all the same.
        self.problems = tuple(map(one_line, problems))
        super().__init__("\n".join(self.problems))


class PluginError(KdbenchError):
    """A plugin, or something a plugin offers, that cannot be used."""


class DataError(KdbenchError):
    """A data set that is missing, damaged or laid out unexpectedly."""


class ModelError(KdbenchError):
    """A model that cannot be built, or weights that do not fit it."""


class ResultsError(KdbenchError):
    """A results folder that cannot be read or must not be mixed with this version."""


class TrackingError(KdbenchError):
    """A tracking store that cannot be reached or refuses data."""


class TrialError(KdbenchError):
    """A trial that could not be trained."""


class DeviceLostError(KdbenchError):
    """A GPU that this process cannot use any more; another process may."""


class ExportError(KdbenchError):
    """A student that cannot be written, or read, in the wanted form."""


class TeacherMismatchError(KdbenchError):
    """A teacher whose accuracy differs from the expected one; the run is aborted before students are trained."""


class Incompatible(KdbenchError):  # noqa: N818 - it states a fact about a pair, it is not a failure
    """Raised by a method's ``setup`` when it cannot read a student or teacher; the trial is skipped."""


LONGEST_MESSAGE = 10_000
"""Characters."""


def text_of(error: BaseException) -> str:
    """An error's text; empty if its ``__str__`` fails. Never raises, and can be written as UTF-8."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - __str__ is a plugin's code, too
        return ""
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[:LONGEST_MESSAGE]} … ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def in_words(error: BaseException) -> str:
    """What failed in third-party code, and where: ``ValueError: no good (my_loss.py, line 12)``.

    kdbench's own errors need no more than their message.
    """
    if isinstance(error, KdbenchError):
        return text_of(error)
    said = f"{type(error).__name__}: {text_of(error)}".removesuffix(": ")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and "torch" not in path.parts and Path(__file__).parent not in path.parents:
            return f"{said} ({path.name}, line {frame.lineno})"
    return said


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is likely to mean."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suffix naming the nearest known name, or else all of them.

    >>> did_you_mean("vdi", ["kd", "vid"])
    "; did you mean 'vid'?"
    """
    names = sorted(known)
    near = nearest(name, names)
    if near is not None:
        return f"; did you mean '{near}'?"
    more = f" and {plural(len(names) - _LISTED, 'other')}" if len(names) > _LISTED else ""
    return f"; known: {', '.join(names[:_LISTED])}{more}" if names else ""
