"""The plan of a merged suite: that of all sources where they agree, else the newest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from kdbench.results.folder import SuiteFolder
from kdbench.results.planned import PlannedTrial, PlanRecord
from kdbench.results.record import TrialRecord
from kdbench.status import Status
from kdbench.suite.plan import PROTOCOL
from kdbench.suite.schema import default_teacher_seeds
from kdbench.suite.tables import split_override
from kdbench.words import listed, plural

T = TypeVar("T")
_UNITED = ("pairs", "methods", "seeds", "teachers", "plugins", "metrics", "sections", "figures")
"""Keys of a suite of which the merged plan has the entries of all."""
_WITHOUT_EFFECT = ("question", "cost", "engine", "checkpoint_every")
"""Keys of a suite that do not change its trials; those of the newest plan are kept."""
_SHOWN = 3


@dataclass(frozen=True)
class Merged:
    """The plan of a suite, and what its reader must know."""

    plan: PlanRecord
    remarks: tuple[str, ...] = ()


def merge_plans(suite: str, plans: Sequence[tuple[Path, PlanRecord]]) -> Merged:
    """One plan from those of some results folders, at least one.

    If they agree, it has the pairs, methods and seeds of all, in report order. They agree if they have the same data,
    recipe and baselines, and a method, pair, teacher or trial of one name is the same in all. If they do not agree, it
    is the newest by date. A plan of :func:`plan_of_trials` is not used if there is another one.
    """
    plans = [(folder, plan) for folder, plan in plans if plan.updated] or plans
    newest_of, newest = max(plans, key=lambda plan: _date(plan[1]))
    if all(plan == newest for _, plan in plans):
        return Merged(newest)
    contents = [plan for _, plan in plans]
    if not (differing := _disagreements(contents)):
        return Merged(_united(contents, newest))
    others = listed([str(folder) for folder, plan in plans if _content(plan) != _content(newest)], _SHOWN)
    return Merged(
        newest,
        (
            f"{suite}: the plans of {newest_of} and {others} differ in {listed(differing, _SHOWN)}; plan.json is the "
            f"newest, that of {newest_of} ({newest.updated})",
        ),
    )


def plan_of_trials(suite: str, trials: Sequence[TrialRecord]) -> PlanRecord:
    """A plan for results that came without one. It has no date."""
    return PlanRecord(
        protocol=PROTOCOL, suite={"name": suite}, path=suite, trials=tuple(PlannedTrial.of(trial) for trial in trials)
    )


def with_states(plan: PlanRecord, folder: SuiteFolder) -> PlanRecord:
    """The plan with the state of each trial in ``folder``."""
    rows = []
    for row in plan.trials:
        result = folder.trial(row.id).recorded
        if result is not None:
            rows.append(row.model_copy(update={"status": result.status, "reason": ""}))
        elif row.status is Status.SKIPPED:
            rows.append(row)
        else:
            rows.append(row.model_copy(update={"status": Status.PENDING, "reason": ""}))
    return plan.model_copy(update={"trials": tuple(rows)})


def unplanned(plan: PlanRecord, folder: SuiteFolder) -> str:
    """A remark on the trials in ``folder`` that the plan does not name; empty if there are none."""
    planned = {row.id for row in plan.trials}
    others = [place.path.name for place in folder if place.path.name not in planned]
    if not others:
        return ""
    return (
        f"{folder.path}: plan.json does not name {plural(len(others), 'trial')}, which the report leaves out: "
        f"{listed(others, _SHOWN)}"
    )


def _content(plan: PlanRecord) -> tuple[Any, ...]:
    return plan.suite, [row.id for row in plan.trials], plan.teachers


def _date(plan: PlanRecord) -> datetime:
    try:
        found = datetime.fromisoformat(plan.updated)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _disagreements(plans: Sequence[PlanRecord]) -> list[str]:
    """The keys in which plans contradict each other."""
    suites = [plan.suite for plan in plans]
    ignored = {*_UNITED, *_WITHOUT_EFFECT, "teacher_seeds"}
    teachers = [{(row.name, row.key) for row in plan.teachers} for plan in plans]
    if all(own & teachers[0] for own in teachers):
        # The key of a teacher contains the data. Their table may differ in the folder of the images.
        ignored.add("data")
    keys = [key for key in dict.fromkeys(key for suite in suites for key in suite) if key not in ignored]
    found = [key for key in keys if any(suite.get(key) != suites[0].get(key) for suite in suites)]
    tables: dict[str, Iterable[tuple[Any, Any]]] = {
        "pairs": (_by_pair(row) for suite in suites for row in _rows(suite, "pairs")),
        "methods": (_by_label(row) for suite in suites for row in _rows(suite, "methods")),
        "metrics": ((row.name, row) for plan in plans for row in plan.metrics),
        "teachers": (((row.name, row.seed), row.key) for plan in plans for row in plan.teachers),
        "the names of trials": ((row.id, _names(row)) for plan in plans for row in plan.trials),
        "the ids of trials": ((_names(row), row.id) for plan in plans for row in plan.trials),
    }
    if not _teacher_seeds(plans):
        found.append("teacher_seeds")
    return [*found, *(key for key, items in tables.items() if _contradict(items))]


def _teacher_seeds(plans: Sequence[PlanRecord]) -> str:
    """The value of ``teacher_seeds`` under which all plans have the teachers that they name; empty if there is none.

    In a plan with one seed, a teacher trained with this seed may be the only one, or one of several.
    """
    possible: list[list[str]] = []
    for plan in plans:
        own = str(plan.suite.get("teacher_seeds", "single"))
        seeds = plan.suite.get("seeds")
        either = isinstance(seeds, list) and len(seeds) == 1 and {row.seed for row in plan.teachers} == set(seeds)
        possible.append([own, "with_seeds", *(["single"] if seeds == [0] else [])] if either else [own])
    common = (value for value in possible[0] if all(value in values for values in possible))
    return next(common, "")


def _contradict(items: Iterable[tuple[Any, Any]]) -> bool:
    """Whether two values have the same key."""
    first: dict[Any, Any] = {}
    return any(first.setdefault(key, value) != value for key, value in items)


def _united(plans: Sequence[PlanRecord], newest: PlanRecord) -> PlanRecord:
    suites = [plan.suite for plan in plans]
    pairs = _once((row for suite in suites for row in _rows(suite, "pairs")), lambda row: _by_pair(row)[0])
    methods = _once((row for suite in suites for row in _rows(suite, "methods")), lambda row: _by_label(row)[0])
    seeds = _once((seed for suite in suites for seed in suite.get("seeds") or ()), lambda seed: seed)
    teacher_seeds = _teacher_seeds(plans)
    overrides = [o for o in newest.overrides if all(o in plan.overrides for plan in plans)]
    if any(suite.get("seeds") != suites[0].get("seeds") for suite in suites):
        seeds = sorted(seeds)
        if any(split_override(override)[0] == "seeds" for plan in plans for override in plan.overrides):
            overrides = [*(o for o in overrides if split_override(o)[0] != "seeds"), f"seeds={seeds}"]
            known = any("teacher_seeds" in suite for suite in suites)
            if known and teacher_seeds != default_teacher_seeds(len(seeds)):
                overrides = [o for o in overrides if split_override(o)[0] != "teacher_seeds"]
                overrides.append(f"teacher_seeds={teacher_seeds}")
    suite = {**newest.suite, "pairs": pairs, "methods": methods, "seeds": seeds}
    if "teacher_seeds" in suite:
        suite["teacher_seeds"] = teacher_seeds
    for key in ("plugins", "metrics", "sections", "figures"):
        if any(key in other for other in suites):
            suite[key] = _once((name for other in suites for name in other.get(key) or ()), lambda name: name)
    if any("teachers" in other for other in suites):
        tables = [other.get("teachers") or {} for other in (*suites, newest.suite)]
        suite["teachers"] = {name: row for table in tables for name, row in table.items()}
    places = [[_by_pair(row)[0] for row in pairs], [_by_label(row)[0] for row in methods], seeds]

    def in_report_order(row: PlannedTrial) -> list[int]:
        own = (row.teacher, row.student), row.label, row.seed
        return [known.index(one) if one in known else len(known) for known, one in zip(places, own, strict=True)]

    rows = _once((row for plan in plans for row in plan.trials), lambda row: row.id)
    return newest.model_copy(
        update={
            "suite": suite,
            "overrides": tuple(overrides),
            "plugins": tuple(_once((name for plan in plans for name in plan.plugins), lambda name: name)),
            "classes": tuple(_once((name for plan in plans for name in plan.classes), lambda name: name)),
            "metrics": tuple(_once((row for plan in plans for row in plan.metrics), lambda row: row.name)),
            "trials": tuple(sorted(rows, key=in_report_order)),
            "teachers": tuple(_once((row for plan in plans for row in plan.teachers), lambda row: (row.name, row.key))),
        }
    )


def _once(items: Iterable[T], key: Callable[[T], Any]) -> list[T]:
    """The first item of each key, in order."""
    found: dict[Any, T] = {}
    for item in items:
        found.setdefault(key(item), item)
    return list(found.values())


def _rows(suite: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return [row for row in suite.get(key) or () if isinstance(row, dict)]


def _by_pair(row: dict[str, Any]) -> tuple[tuple[Any, Any], dict[str, Any]]:
    return (row.get("teacher"), row.get("student")), row


def _by_label(row: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return row.get("label") or row.get("name"), row


def _names(row: PlannedTrial) -> tuple[str, str, str, int]:
    return row.teacher, row.student, row.label, row.seed
