"""Taking, keeping and giving up claims."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdbench.atomic import remove_leftovers
from kdbench.claims.chain import FREE, Chain, Entry
from kdbench.claims.heartbeat import LEASE_SECONDS, Heartbeat, Holder, Watch
from kdbench.errors import ResultsError

CLAIMS = ".claims"
"""The folder of claims within an output folder."""
WORKERS = "workers"
LOOK_SECONDS = 1.0
"""Between two looks for signs of life."""


def trials_of(suite: str) -> str:
    """The kind of claims of a suite's trials."""
    return f"{suite}/trials"


class ClaimLostError(ResultsError):
    """Another process has taken over a claim: this one must not write there any more."""


class HeldError(Exception):
    """Another living process holds what this one wants."""

    def __init__(self, name: str, holder: Holder) -> None:
        super().__init__(f"{name} is held by {holder}")
        self.holder = holder


class Claim:
    """A name that this process holds."""

    def __init__(
        self,
        chain: Chain,
        name: str,
        number: int,
        entry: Entry,
        heartbeat: Heartbeat,
        gaps: int,
        unreleased: list[Claim] | None = None,
    ) -> None:
        """``unreleased``: where a claim is kept whose release could not be written."""
        self.name = name
        self.entry = entry
        self._chain = chain
        self._number = number
        self._heartbeat = heartbeat
        self._gaps = gaps
        self._ended = False
        self._unreleased = [] if unreleased is None else unreleased

    def check(self) -> None:
        """Raise :class:`ClaimLostError` if another process holds the name.

        Called before each write to what is claimed. It costs nothing while the signs of life are punctual. After a
        pause, in which others may have taken this process for dead, the claim is made again, which fails if it is lost.
        """
        if not self._ended and self._heartbeat.is_sound(self._gaps):
            return
        gaps = self._heartbeat.gaps
        if self._ended or not self._append(self.entry):
            self._ended = True
            raise ClaimLostError(
                f"{self.name}: another process has taken it over, because this one gave no sign of life for "
                f"{self._heartbeat.lease:g} seconds"
            )
        self._gaps = gaps

    def release(self) -> None:
        """Give the name up; nothing happens if it is lost.

        If that cannot be written, it is tried again later, and the name is free at the end of the process.
        """
        if not self._ended:
            self._ended = True
            self.try_to_release()

    def try_to_release(self) -> None:
        """Write that the name is free."""
        try:
            self._append(FREE)
        except ResultsError:
            self._unreleased.append(self)

    def _append(self, entry: Entry) -> bool:
        with explained(self._chain.folder):
            made = self._chain.append(self.name, self._number + 1, entry)
        self._number += made
        return made


@dataclass(frozen=True)
class Standing:
    """Who holds a name, as far as this process knows."""

    number: int
    entry: Entry
    holder: Holder | None
    """The living process that has claimed it; None if it is free."""

    def deaths(self, epochs: int) -> int:
        """How many processes in a row died while they held it, without finishing one of now ``epochs`` epochs."""
        ended_by_death = self.entry.owner is not None and self.holder is None
        return self.entry.deaths + 1 if ended_by_death and epochs <= self.entry.epochs else 0


NEVER_HELD = Standing(0, FREE, None)


class Claims:
    """The claims of one process below an output folder. ``kind`` is a suite, or ``_teachers``, as its folders there."""

    def __init__(self, output: Path, heartbeat: Heartbeat, watch: Watch) -> None:
        self._output = output
        self._heartbeat = heartbeat
        self._watch = watch
        self._unreleased: list[Claim] = []

    @property
    def owner(self) -> str:
        """This process."""
        return self._heartbeat.owner

    @property
    def sign(self) -> Path:
        """The file of this process's signs of life."""
        return self._heartbeat.path

    def standings(self, kind: str) -> dict[str, Standing]:
        """All names of a kind that were ever held."""
        late, self._unreleased[:] = [*self._unreleased], []
        for claim in late:
            claim.try_to_release()
        return standings(self._output, kind, self._watch)

    def standing(self, kind: str, name: str) -> Standing:
        """One of :meth:`standings`."""
        return self.standings(kind).get(name, NEVER_HELD)

    def others(self, kind: str) -> dict[str, Holder]:
        """What other living processes hold. Waits, up to their lease, for a sign of life of those elsewhere."""
        while True:
            held = {name: standing.holder for name, standing in self.standings(kind).items()}
            found = {name: one for name, one in held.items() if one is not None and one.owner != self.owner}
            if not self.is_uncertain(found.values()):
                return found
            time.sleep(LOOK_SECONDS)

    def is_uncertain(self, holders: Iterable[Holder]) -> bool:
        """Whether one of these processes may have died before this process began to look."""
        return not all(self._watch.is_certain(one.owner) for one in holders if one.owner != self.owner)

    def take(self, kind: str, name: str, known: Standing, together: int = 1, epochs: int = 0) -> Claim | None:
        """Claim a name that is free in ``known``; None if another process was first.

        ``together`` and ``epochs``: see :class:`Entry`. Raises :class:`ResultsError` if the folder cannot be written.
        """
        if known.holder is not None:
            return None
        chain = Chain(self._output / CLAIMS / kind)
        entry = Entry(self.owner, together, epochs, known.deaths(epochs))
        gaps = self._heartbeat.gaps
        with explained(chain.folder):
            made = chain.append(name, known.number + 1, entry)
        if not made:
            return None
        return Claim(chain, name, known.number + 1, entry, self._heartbeat, gaps, self._unreleased)

    def claim(self, kind: str, name: str, epochs: int = 0) -> Claim:
        """Claim a name that is not trained together with others. Raises :class:`HeldError`."""
        while True:
            known = self.standing(kind, name)
            if known.holder is not None:
                raise HeldError(name, known.holder)
            if (claim := self.take(kind, name, known, epochs=epochs)) is not None:
                return claim


def standings(output: Path, kind: str, watch: Watch) -> dict[str, Standing]:
    """All names of a kind that were ever held below an output folder."""
    chain = Chain(output / CLAIMS / kind)
    found = {}
    with explained(chain.folder):
        for name, number in chain.numbers().items():
            entry = chain.read(name, number)
            if entry.owner is None:
                holder = None
            elif entry.owner:
                holder = watch.living(entry.owner)
            else:
                unwritten = Holder("", "an unknown host", 0, "", LEASE_SECONDS)
                holder = None if watch.is_unchanged(chain.path(name, number), entry, LEASE_SECONDS) else unwritten
            found[name] = Standing(number, entry, holder)
    return found


def living(output: Path, kind: str) -> dict[str, Holder]:
    """What living processes hold, as it looks at first sight: one of another machine may have died a while ago."""
    found = standings(output, kind, Watch(output / CLAIMS / WORKERS))
    return {name: standing.holder for name, standing in found.items() if standing.holder is not None}


def listed(held: Mapping[str, Holder]) -> str:
    """The processes that hold something, for people."""
    return " and ".join(sorted({str(holder) for holder in held.values()}))


@contextmanager
def claiming(output: Path, lease: float = LEASE_SECONDS) -> Iterator[Claims]:
    """Claims of this process, with its signs of life, within the context. ``lease``: see :data:`LEASE_SECONDS`.

    Raises :class:`ResultsError` if the output folder cannot be written.
    """
    folder = output / CLAIMS / WORKERS
    heartbeat, watch = Heartbeat(folder, lease), Watch(folder)
    with explained(output):
        heartbeat.start()
        watch.forget_dead()
        for place in (output / CLAIMS).glob("**/"):
            remove_leftovers(place)
    try:
        yield Claims(output, heartbeat, watch)
    finally:
        heartbeat.stop()


@contextmanager
def claiming_all(output: Path, wanted: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Claim names, each given with its kind, within the context.

    Raises :class:`ResultsError` if a living process holds one of them.
    """
    with claiming(output) as claims, ExitStack() as held:
        known: dict[str, dict[str, Standing]] = {}
        for kind, name in sorted(set(wanted)):
            if kind not in known:
                claims.others(kind)  # those that are dead are known to be dead then
                known[kind] = claims.standings(kind)
            standing = known[kind].get(name, NEVER_HELD)
            claim = claims.take(kind, name, standing)
            if claim is None:
                holder = standing.holder or "another process"
                raise ResultsError(f"{output}: {name} is in use by {holder}; wait for it or stop it")
            held.callback(claim.release)
        yield


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Errors of the file system name the folder."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{folder}: cannot be written: {error.strerror or error}") from error
