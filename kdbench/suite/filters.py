"""Which trials of a suite are meant, by method, pair and seed: to train, to list or to report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from kdbench.errors import SuiteError, did_you_mean
from kdbench.suite.schema import Suite


class Named(Protocol):
    """What a trial is chosen by. A planned trial, its record and its row in a table have all of it."""

    @property
    def method(self) -> str:
        """The method's name."""

    @property
    def label(self) -> str:
        """What the suite calls the method."""

    @property
    def pair(self) -> str:
        """``teacher:student``."""

    @property
    def seed(self) -> int:
        """The trial's seed."""


@dataclass(frozen=True)
class Filters:
    """Which trials of a suite are meant; empty means all."""

    methods: Sequence[str] = ()
    """Globs on a method's name or label."""
    pairs: Sequence[str] = ()
    """``teacher:student``."""
    seeds: Sequence[int] = ()

    def check(self, suite: Suite) -> None:
        """Refuse a filter that nothing in the suite answers to."""
        problems = []
        names = {method.name for method in suite.methods} | {method.shown for method in suite.methods}
        for glob in self.methods:
            if not any(fnmatchcase(name, glob) for name in names):
                problems.append(f"--method {glob}: no method of suite {suite.name}{did_you_mean(glob, names)}")
        pairs = {pair.name for pair in suite.pairs}
        problems += [
            f"--pair {pair}: no pair of suite {suite.name}{did_you_mean(pair, pairs)}"
            for pair in self.pairs
            if pair not in pairs
        ]
        problems += [
            f"--seed {seed}: no seed of suite {suite.name}; its seeds: {', '.join(map(str, suite.seeds))}"
            for seed in self.seeds
            if seed not in suite.seeds
        ]
        if problems:
            raise SuiteError(problems)

    def match(self, trial: Named) -> bool:
        """Whether a trial is meant."""
        names = trial.method, trial.label
        return (
            (not self.methods or any(fnmatchcase(name, glob) for glob in self.methods for name in names))
            and (not self.pairs or trial.pair in self.pairs)
            and (not self.seeds or trial.seed in self.seeds)
        )

    def without_methods(self) -> Filters:
        """The same pairs and seeds, every method."""
        return Filters(pairs=self.pairs, seeds=self.seeds)

    def describe(self) -> str:
        """The filters as command-line options; empty where there are none."""
        options = [f"--method {glob}" for glob in self.methods]
        options += [f"--pair {pair}" for pair in self.pairs]
        options += [f"--seed {seed}" for seed in self.seeds]
        return " ".join(options)


def check_highlight(labels: Iterable[str], shown: Iterable[str]) -> None:
    """Refuse a label to highlight that a report does not show.

    Raises:
        SuiteError: with the label that was meant.
    """
    known = set(shown)
    if problems := [
        f"--highlight {label}: no label of the methods shown{did_you_mean(label, known)}"
        for label in labels
        if label not in known
    ]:
        raise SuiteError(problems)
