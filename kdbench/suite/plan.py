"""Trials and cohorts of a suite, before training. Pure and printable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kdbench.recipe import Recipe
from kdbench.status import Status
from kdbench.suite.schema import Suite

# Raised whenever a change of kdbench changes what a trial computes: old results are then refused, never mixed.
PROTOCOL = 3


@dataclass(frozen=True)
class Origin:
    """Who provides a method. ``fingerprint``: SHA-256 of its source, or the version (``discovery.sources``)."""

    distribution: str
    version: str
    fingerprint: str


def shown_teacher(name: str, seed: int | None) -> str:
    """A teacher in a message. ``seed``: None if there is no other teacher of this name."""
    return name if seed is None else f"{name}, seed {seed}"


def unexpected(name: str, top1: float, expected: float | None, tolerance: float) -> str:
    """How a teacher's test accuracy (percent) differs from what its suite expects; empty where it does not."""
    if expected is None or abs(top1 - expected) <= tolerance:
        return ""
    return f"teacher {name}: reaches {top1:.2f} % on the test set, the suite expects {expected:.2f} ± {tolerance:.2f} %"


def content_hash(content: Mapping[str, Any], length: int = 16) -> str:
    """The first ``length`` hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def trial_id(identity: Mapping[str, Any], teacher_model: str) -> str:
    """A trial's id, from its :attr:`Trial.identity`: readable, and unique by its hash."""
    words = [teacher_model, identity["student"], identity["method"], f"seed{identity['seed']}"]
    slug = "-".join("".join(c if c.isalnum() or c in "_." else "_" for c in word) for word in words)
    # File systems take names of 255 bytes.
    slug = slug.encode()[:200].decode(errors="ignore")
    return f"{slug}-{content_hash(identity, 10)}"


def training_hash(identity: Mapping[str, Any]) -> str:
    """Equal for trials that differ in nothing but the teacher, from their :attr:`Trial.identity`."""
    return content_hash({key: value for key, value in identity.items() if key != "teacher"})


@dataclass(frozen=True)
class TeacherPlan:
    """A teacher to be trained or loaded: ``key`` is the hash of all that decides its weights."""

    name: str
    model: str
    data: Mapping[str, Any]
    recipe: Recipe | None
    """None where weights are given."""
    weights: str | None
    weights_sha256: str | None
    seed: int
    model_source: str = ""
    """Fingerprint of the code of a model that a plugin brings."""
    part_sources: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of third parties' parts of the recipe (:attr:`kdbench.parts.Parts.sources`)."""
    expected_top1: float | None = None
    tolerance: float = 1.0
    is_one_of_several: bool = field(default=False, compare=False)
    """Whether the suite has teachers of this name with other seeds."""

    @property
    def shown(self) -> str:
        """For people: the name, with the seed if that distinguishes it from other teachers of the suite."""
        return shown_teacher(self.name, self.seed if self.is_one_of_several else None)

    def mismatch(self, top1: float) -> str:
        """How its measured accuracy (percent) differs from the expected one; empty where it does not."""
        return unexpected(self.shown, top1, self.expected_top1, self.tolerance)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides its weights, and nothing else (no name)."""
        return {
            "protocol": PROTOCOL,
            "model": self.model,
            "data": dict(self.data),
            "recipe": self.recipe.model_dump(mode="json") if self.recipe else None,
            "model_source": self.model_source,
            "weights": self.weights_sha256 or self.weights,
            "seed": self.seed,
            **part_sources(self.part_sources),
        }

    @property
    def key(self) -> str:
        """Names the teacher's folder; equal for equal content."""
        return content_hash(self.identity)

    def describe(self) -> dict[str, Any]:
        """The row of ``kdbench plan --json``."""
        return {
            "name": self.name,
            "seed": self.seed,
            "model": self.model,
            "key": self.key,
            "weights": self.weights,
            "epochs": self.recipe.epochs if self.recipe else 0,
        }


@dataclass(frozen=True)
class Trial:
    """One student, one method, one teacher, one seed, one recipe, one data set."""

    suite: str
    data: Mapping[str, Any]
    teacher: TeacherPlan
    student: str
    method: str
    label: str
    seed: int
    settings: Mapping[str, Any]
    """Resolved: defaults included."""
    recipe: Recipe
    origin: Origin
    student_source: str = ""
    """Fingerprint of the code of a student that a plugin brings."""
    part_sources: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of third parties' parts of the recipe (:attr:`kdbench.parts.Parts.sources`)."""
    untaught: bool = False
    """Whether its training reads nothing of the teacher (:mod:`kdbench.resolve.untaught`)."""
    status: Status = Status.PENDING
    reason: str = ""

    @property
    def pair(self) -> str:
        """``teacher:student``."""
        return f"{self.teacher.name}:{self.student}"

    @cached_property
    def training(self) -> str:
        """Equal for untaught trials that differ only in the teacher: one training serves all. Empty for others."""
        return training_hash(self.identity) if self.untaught else ""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the trial's outcome, and nothing else (no suite, label or teacher's name)."""
        return {
            "protocol": PROTOCOL,
            "data": dict(self.data),
            "teacher": self.teacher.key,
            "student": self.student,
            "student_source": self.student_source,
            "method": self.method,
            "settings": dict(self.settings),
            "seed": self.seed,
            "recipe": self.recipe.model_dump(mode="json"),
            "fingerprint": self.origin.fingerprint,
            **part_sources(self.part_sources),
        }

    @cached_property
    def id(self) -> str:
        """Readable, and unique by the hash of :attr:`identity`; without names that a suite may change."""
        return trial_id(self.identity, self.teacher.model)

    def with_status(self, status: Status, reason: str = "") -> Trial:
        """The same trial in another state."""
        return replace(self, status=status, reason=reason)

    def describe(self) -> dict[str, Any]:
        """The row of ``kdbench plan --json``."""
        return {
            "id": self.id,
            "teacher": self.teacher.name,
            "student": self.student,
            "method": self.method,
            "label": self.label,
            "seed": self.seed,
            "status": self.status,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Cohort:
    """Trials that see the same feed, and therefore train in lockstep."""

    teacher: TeacherPlan
    seed: int
    epochs: int
    batch_size: int
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.teacher.name}, seed {self.seed}"

    def describe(self) -> dict[str, Any]:
        """The row of ``kdbench plan --json``."""
        return {
            "teacher": self.teacher.name,
            "seed": self.seed,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "trials": [trial.id for trial in self.trials],
        }


def feed_key(trial: Trial) -> str:
    """Equal for trials whose batches are equal, image by image. The student's learning rate is no part of it."""
    recipe = trial.recipe
    return content_hash(
        {
            "data": dict(trial.data),
            "teacher": trial.teacher.key,
            "batch_size": recipe.batch_size,
            "epochs": recipe.epochs,
            "augmentation": [a.model_dump(mode="json") for a in recipe.augmentation],
            # Lockstep shares one teacher pass, which runs in one precision.
            "precision": recipe.precision,
            "seed": trial.seed,
            **part_sources({k: v for k, v in trial.part_sources.items() if k.startswith("augmentation.")}),
        }
    )


def part_sources(sources: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Left out where it is empty, as for every recipe of built-in parts: these are identified by their names."""
    return {"part_sources": dict(sources)} if sources else {}


@dataclass(frozen=True)
class Plan:
    """All trials of a suite in report order, and the cohorts of those that can be trained."""

    suite: Suite
    trials: tuple[Trial, ...]

    @property
    def teachers(self) -> tuple[TeacherPlan, ...]:
        """Each teacher once, in the order of the pairs and seeds; a name may have one for each seed."""
        return tuple({trial.teacher.key: trial.teacher for trial in self.trials}.values())

    @property
    def cohorts(self) -> tuple[Cohort, ...]:
        """The trials that were not skipped, grouped by feed."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            if trial.status is not Status.SKIPPED:
                groups.setdefault(feed_key(trial), []).append(trial)
        return tuple(
            Cohort(first.teacher, first.seed, first.recipe.epochs, first.recipe.batch_size, tuple(group))
            for group in groups.values()
            for first in group[:1]
        )

    def with_trials(self, trials: Iterable[Trial]) -> Plan:
        """The same plan with trials in other states."""
        return replace(self, trials=tuple(trials))

    def describe(self) -> dict[str, Any]:
        """``kdbench plan --json``."""
        return {
            "suite": self.suite.name,
            "teachers": [teacher.describe() for teacher in self.teachers],
            "trials": [trial.describe() for trial in self.trials],
            "cohorts": [cohort.describe() for cohort in self.cohorts],
        }


def count(trials: Sequence[Trial]) -> dict[Status, int]:
    """How many trials are in each state."""
    states: dict[Status, int] = {}
    for trial in trials:
        states[trial.status] = states.get(trial.status, 0) + 1
    return states
