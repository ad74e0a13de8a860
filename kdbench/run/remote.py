"""Training on a machine that does not see the results folder: on a copy, whose changes are sent back as files.

A :class:`ResultsServer` runs where the folder is. It claims trials in the worker's stead, hands out what was trained so
far, and writes what the worker sends. A task that is started again, because its machine was lost, takes over from its
predecessor, which may not write any more.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kdbench.claims import CLAIMS, Claim, ClaimLostError, HeldError, claiming, trials_of
from kdbench.claims.desk import WORKERS
from kdbench.errors import ResultsError
from kdbench.results import TEACHERS, SuiteFolder
from kdbench.results.equivalent import equivalents
from kdbench.results.files import remove, write_atomically
from kdbench.run.job import ERROR, WARNING, Job, Orders, Tell
from kdbench.run.work import trainings_of

POLL_SECONDS = 1.0
"""Between two requests, while another process trains the teacher."""


@dataclass(frozen=True)
class Content:
    """A file's bytes, and the time of its last change, which results name."""

    data: bytes
    mtime_ns: int


@dataclass(frozen=True)
class Loan:
    """What a worker may train, with the files that exist already."""

    number: int
    chosen: frozenset[str]
    """The ids of the trials."""
    files: Mapping[str, Content]
    """By path relative to the output folder."""


class Server(Protocol):
    """A :class:`ResultsServer`, which may be in another process or on another machine.

    Its methods raise what those of the server raise, and ``OSError`` or ``EOFError`` if the server has ended.
    """

    def lend(self, job: Job, only_teacher: bool) -> Loan | None:
        """See :meth:`ResultsServer.lend`."""

    def take(self, loan: int, name: str, content: Content | None) -> None:
        """See :meth:`ResultsServer.take`."""

    def end(self, loan: int) -> None:
        """See :meth:`ResultsServer.end`."""


@dataclass
class _Lent:
    """What the server knows about a task."""

    loan: int = 0
    claims: dict[str, Claim] = field(default_factory=dict)
    """By the path of what is claimed, relative to the output folder."""
    own_claims: dict[str, Content] = field(default_factory=dict)
    """The claims of the worker in its copy: if it dies, its successor sees what it was training."""


class ResultsServer:
    """Hands out and takes the files of a suite's results folder. Not safe for use by several threads."""

    def __init__(self, folder: Path, lease: float) -> None:
        """``folder``: of the suite. ``lease``: see :data:`~kdbench.claims.LEASE_SECONDS`."""
        self._folder = SuiteFolder(folder.parent, folder.name)
        self._output = folder.parent
        self._closing = ExitStack()
        self._claims = self._closing.enter_context(claiming(self._output, lease))
        self._numbers = itertools.count(1)
        self._lent: dict[tuple[int, bool], _Lent] = {}

    def close(self) -> None:
        """Give everything up that is still claimed."""
        for lent in self._lent.values():
            for claim in lent.claims.values():
                claim.release()
        self._lent.clear()
        self._closing.close()

    def lend(self, job: Job, only_teacher: bool) -> Loan | None:
        """Claim the job's trials that are free, and its teacher if it is missing; None if another process trains that.

        An earlier loan for the same job ends. Raises :class:`~kdbench.errors.ResultsError`.
        """
        lent = self._lent.setdefault((job.number, only_teacher), _Lent())
        lent.loan = next(self._numbers)
        teacher = self._folder.teacher(job.teacher)
        if not teacher.is_complete:
            try:
                self._claim(lent, TEACHERS, TEACHERS, job.teacher, len(teacher.epochs))
            except HeldError:
                return None
        suite = self._folder.path.name
        chosen = set() if only_teacher else {name for name in job.chosen if self._is_free(lent, suite, name)}
        trainings = {job.trainings[name] for name in chosen if name in job.trainings}
        adoptable = equivalents(self._folder, trainings)
        for name in sorted(chosen & job.trainings.keys()):
            training = job.trainings[name]
            ready = training in adoptable or self._folder.trial(name).checkpoint.exists()
            if not ready and not self._claims_training(lent, suite, training):
                # Another run trains an equal one.
                lent.claims.pop(f"{suite}/{name}").release()
                chosen.remove(name)
        places = [teacher.path, *(self._folder.trial(name).path for name in sorted(chosen))]
        places += [one.path for found in adoptable.values() for one in found]
        files = {name: _read(self._output / name) for name in _stamps(self._output, places)}
        return Loan(lent.loan, frozenset(chosen), files | lent.own_claims)

    def _is_free(self, lent: _Lent, suite: str, name: str) -> bool:
        trial = self._folder.trial(name)
        if trial.result is not None:
            return False
        try:
            self._claim(lent, trials_of(suite), suite, name, len(trial.epochs))
        except HeldError:
            return False
        if trial.result is not None:  # finished between the two
            lent.claims.pop(f"{suite}/{name}").release()
            return False
        return True

    def _claims_training(self, lent: _Lent, suite: str, training: str) -> bool:
        kind = trainings_of(suite)
        try:
            self._claim(lent, kind, kind, training, 0)
        except HeldError:
            return False
        return True

    def _claim(self, lent: _Lent, kind: str, parent: str, name: str, epochs: int) -> None:
        key = f"{parent}/{name}"
        if key not in lent.claims:
            lent.claims[key] = self._claims.claim(kind, name, epochs)

    def take(self, loan: int, name: str, content: Content | None) -> None:
        """Write a file of a loan, by its path relative to the output folder; None removes it.

        Raises:
            ClaimLostError: the loan has ended.
            ResultsError: the file cannot be written.
        """
        lent = self._find(loan)
        if name.startswith(f"{CLAIMS}/"):
            if content is not None:
                lent.own_claims[name] = content
            return
        claim = lent.claims.get("/".join(name.split("/")[:2]))
        if claim is None:
            raise ClaimLostError(f"{name}: a worker without a claim tried to write it")
        place = self._output / name
        if content is None:
            claim.check()
            remove(place)
        else:
            write_atomically(place, partial(_fill, content), claim.check)

    def end(self, loan: int) -> None:
        """Give up what was claimed for a loan."""
        lent = self._find(loan)
        for claim in lent.claims.values():
            claim.release()
        self._lent = {key: one for key, one in self._lent.items() if one is not lent}

    def _find(self, loan: int) -> _Lent:
        for lent in self._lent.values():
            if lent.loan == loan:
                return lent
        raise ClaimLostError("another worker has taken over, because this one was taken for dead")


def on_a_copy(
    job: Job,
    tell: Tell,
    orders: Orders,
    train: Callable[[Job, Tell, Orders], None],
    server: Server,
    *,
    only_teacher: bool,
) -> None:
    """Do a job with ``train`` in a temporary folder. Before a message is told, the changed files are sent."""
    loan = None
    while loan is None:
        if orders.asked():
            return
        try:
            loan = server.lend(job, only_teacher)
        except ResultsError as error:
            tell(ERROR, text=str(error))
            return
        if loan is None:
            time.sleep(POLL_SECONDS)
    with tempfile.TemporaryDirectory(prefix="kdbench-", ignore_cleanup_errors=True) as name:
        copy = _Copy(Path(name), loan, server)
        there = job.info.output
        lost = False

        def send() -> bool:
            nonlocal lost
            if not lost:
                try:
                    copy.send()
                except ClaimLostError as error:
                    lost = True
                    orders.leave()
                    tell(WARNING, text=str(error))
            return not lost

        def told(name: str, /, **arguments: Any) -> None:
            if name in {ERROR, WARNING}:
                tell(name, **arguments)
            elif send():
                if "run" in arguments:
                    arguments["run"] = replace(arguments["run"], output=there)
                tell(name, **arguments)

        train(copy.job(job), told, orders)
        try:
            if send():
                server.end(loan.number)
        except ResultsError as error:
            tell(ERROR, text=str(error))


class _Copy:
    """The files of a loan, and what of them the server has."""

    def __init__(self, output: Path, loan: Loan, server: Server) -> None:
        self._output = output
        self._loan = loan
        self._server = server
        self._sign = output / "sign"
        self._sign.touch()
        for name, content in loan.files.items():
            write_atomically(output / name, partial(_fill, content))
        self._known = self._look()

    def job(self, job: Job) -> Job:
        """The same job, on the copy."""
        return replace(
            job,
            info=replace(job.info, output=self._output / job.info.output.name),
            chosen=self._loan.chosen,
            folder=job.folder if job.folder.is_dir() else self._output,
            sign=self._sign,
        )

    def _look(self) -> dict[str, _Stamp]:
        return _stamps(self._output, [path for path in self._output.iterdir() if path.is_dir()])

    def send(self) -> None:
        """Send what has changed. Raises what the server raises."""
        found = self._look()
        # A result comes after the files that it names.
        for name in sorted(found, key=lambda name: (name.endswith("/result.json"), name)):
            if found[name] != self._known.get(name):
                self._server.take(self._loan.number, name, _read(self._output / name))
                self._known[name] = found[name]
        for name in sorted(self._known.keys() - found.keys()):
            self._server.take(self._loan.number, name, None)
            del self._known[name]


_Stamp = tuple[int, int, int]


def _stamps(output: Path, places: Iterable[Path]) -> dict[str, _Stamp]:
    """What changes with each file below ``places``, by its path relative to ``output``."""
    found = {}
    for path in (path for place in places for path in _files(place)):
        status = path.stat()
        found[path.relative_to(output).as_posix()] = status.st_mtime_ns, status.st_size, status.st_ino
    return found


def _files(place: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(place):
        if Path(folder).name != WORKERS:
            paths = (Path(folder, name) for name in names if not (name.startswith(".") and name.endswith(".tmp")))
            yield from (path for path in paths if path.is_file())


def _read(path: Path) -> Content:
    with path.open("rb") as file:
        return Content(file.read(), os.fstat(file.fileno()).st_mtime_ns)


def _fill(content: Content, path: Path) -> None:
    path.write_bytes(content.data)
    os.utime(path, ns=(content.mtime_ns, content.mtime_ns))
