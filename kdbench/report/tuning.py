"""How the methods of a suite were tuned, by the suite's own record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdbench.report import wording
from kdbench.report.study import Study
from kdbench.search import Search
from kdbench.suite.schema import TunedMethod, Tuning

UNTUNED = "No method was tuned for this suite: each has its default settings, or those that the suite gives."
FACTOR = "lr_factor"


def record(study: Study) -> Tuning | None:
    """The record of ``kdbench tune``; None if the suite has none."""
    given = study.suite.get("tuning")
    if given is None:
        return None
    try:
        return Tuning.model_validate(given)
    except ValidationError:  # of another version
        return None


def sentence(study: Study) -> str:
    """The tuning in one sentence of the protocol."""
    found = record(study)
    if found is None:
        return UNTUNED
    rest = [row["label"] for row in rows(study, found) if not row["is_used"]]
    text = (
        f"Methods were tuned with {wording.plural(found.trials, 'configuration')} each, chosen by validation accuracy "
        "(section Tuning)."
    )
    if not rest:
        return text
    verbs = ("was", "has") if len(rest) == 1 else ("were", "have")
    return (
        f"{text} The {'method' if len(rest) == 1 else 'methods'} {wording.listing(rest)} {verbs[0]} not tuned, or "
        f"{verbs[1]} other settings than the chosen ones."
    )


def rows(study: Study, found: Tuning) -> list[dict[str, Any]]:
    """Each method of the report, with its budget, the values tried, the default and the chosen ones."""
    given = {str(row.get("label") or row.get("name")): row for row in study.suite.get("methods", [])}
    return [
        _row(label, found.methods.get(label, TunedMethod(trials=0, note="not tuned")), given) for label in study.labels
    ]


def _row(label: str, one: TunedMethod, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    suite = {FACTOR: 1.0, **given.get(label, {})}
    is_used = one.trials > 0 and all(suite.get(key, one.default.get(key)) == value for key, value in one.chosen.items())
    note = one.note
    if one.trials and not is_used:
        note = "this suite has other settings than the chosen ones"
    return {
        "label": label,
        "trials": one.trials,
        "without_result": one.without_result,
        "settings": [
            {
                "name": key,
                "tried": _tried(search),
                "default": _value(one.default.get(key)),
                "chosen": _value(one.chosen.get(key)),
                "is_kept": one.default.get(key) == one.chosen.get(key),
            }
            for key, search in one.space.items()
        ],
        "default_top1": one.default_top1,
        "chosen_top1": one.chosen_top1,
        "is_used": is_used,
        "note": note,
    }


def _tried(search: Search) -> str:
    """A range or the choices of a setting, in words."""
    if search.choices:
        return wording.listing([_value(choice) for choice in search.choices])
    low, high = search.bounds
    return f"{_value(low)} to {_value(high)}{' (log scale)' if search.log else ''}"


def _value(value: object) -> str:
    """A setting as a suite file has it, without the zeros of floating-point numbers."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.6g}"
    return wording.DASH if value is None else str(value)


def images(study: Study) -> int | None:
    """The number of validation images; None if the suite gives a share, or no number."""
    given = study.suite.get("data", {}).get("validation")
    return given if isinstance(given, int) and not isinstance(given, bool) and given > 0 else None


def factors(study: Study) -> list[tuple[str, str]]:
    """Methods with another learning rate than the recipe's, as rows of the recipe's table."""
    return [
        (f"for {row.get('label') or row.get('name')}", f"learning rates × {row[FACTOR]:g}")
        for row in study.suite.get("methods", [])
        if isinstance(row.get(FACTOR), int | float) and row[FACTOR] != 1
    ]
