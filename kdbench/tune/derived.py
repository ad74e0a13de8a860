"""The suite whose trials are the configurations, and the suite that has the chosen ones."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.opening import Opened
from kdbench.suite.schema import Pair, Tuning
from kdbench.suite.tables import anchor, rows, shipped, split_override, table
from kdbench.tune.outcome import Row
from kdbench.tune.space import FACTOR, Space


def suite_of_configurations(
    opened: Opened, name: str, pair: Pair, seed: int, entries: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The tables of a suite with one of ``[[methods]]`` for each configuration, on one pair and with one seed.

    Its teacher is that of the suite. The validation split is measured after each epoch.
    """
    tables = _anchored(opened)
    suite = opened.suite
    for key in ("cost", "tune", "tuning", "sections", "figures"):
        tables.pop(key, None)
    written = next(
        row for row in rows(tables, "pairs") if (row["teacher"], row["student"]) == (pair.teacher, pair.student)
    )
    written = {key: value for key, value in written.items() if key != "methods"}
    # Only of the pair: a teacher with another recipe would be another teacher.
    written["recipe"] = {**table(written.get("recipe")), "selection": "validation"}
    teachers = {pair.teacher: table(table(tables.get("teachers")).get(pair.teacher))}
    weights = teachers[pair.teacher].get("weights")
    if isinstance(weights, list):
        teachers[pair.teacher]["weights"] = [weights[suite.seeds.index(seed)]]
    methods = list(entries)
    return {
        **tables,
        "name": name,
        "question": f"Tuning of {suite.name} on {pair.name}: {suite.question}",
        "seeds": [seed],
        "teacher_seeds": suite.teacher_seeds,
        "teachers": teachers if teachers[pair.teacher] else {},
        "pairs": [written],
        "methods": methods,
        "baselines": [methods[0]["label"]],
    }


def entry(space: Space, number: int, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """One of ``[[methods]]``: the method in a configuration, as ``kd#03``."""
    label = f"{space.label}#{number:02d}"
    return {"name": space.trial.method, "label": label, FACTOR: space.lr_factor, **space.settings, **configuration}


def tuned_suite(opened: Opened, tuned: Sequence[Row], tuning: Tuning, target: Path) -> str:
    """The suite with the chosen settings, in TOML, to be written to ``target``."""
    import tomli_w

    chosen = {row.space.label: dict(row.chosen_settings) for row in tuned}
    given = opened.given
    if isinstance(given, Path):
        tables: dict[str, Any] = {"extends": _reference(given, target)}
        changed = {split_override(override)[0].partition(".")[0] for override in opened.overrides}
        source = _anchored(opened) if changed & {"plugins", "teachers"} else opened.tables
        tables |= {key: source[key] for key in sorted(changed - {"methods", "tune", "tuning"}) if key in source}
    else:
        tables = _anchored(opened)
    pairs = [_without_chosen(row, chosen, tuning.pair) for row in rows(opened.tables, "pairs")]
    if pairs != rows(opened.tables, "pairs"):
        tables["pairs"] = pairs
    methods = rows(opened.tables, "methods")
    tables["methods"] = [{**row, **chosen.get(str(row.get("label") or row["name"]), {})} for row in methods]
    tables["tuning"] = {
        **tuning.model_dump(mode="json", exclude={"methods"}),
        "methods": {
            label: {
                **one.model_dump(mode="json", exclude={"space"}, exclude_none=True, exclude_defaults=True),
                "space": {key: search.to_toml() for key, search in one.space.items()},
            }
            for label, one in tuning.methods.items()
        },
    }
    return str(tomli_w.dumps(tables))


def _without_chosen(row: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]], tuned_on: str) -> dict[str, Any]:
    """One of ``[[pairs]]``: on the pair of the tuning, the chosen settings replace the pair's exceptions."""
    if f"{row.get('teacher')}:{row.get('student')}" != tuned_on or "methods" not in row:
        return dict(row)
    kept = {
        label: {key: value for key, value in settings.items() if key not in chosen.get(label, {})}
        for label, settings in row["methods"].items()
    }
    return {**row, "methods": {label: settings for label, settings in kept.items() if settings}}


def _anchored(opened: Opened) -> dict[str, Any]:
    """The suite's tables; paths do not depend on the place of its file."""
    tables = copy.deepcopy(dict(opened.tables))
    anchor(tables, opened.given.parent.resolve() if isinstance(opened.given, Path) else Path.cwd())
    return tables


def _reference(given: Path, target: Path) -> str:
    """The suite for ``extends``: a shipped suite's name, or the path from the folder of ``target``."""
    for name, path in shipped().items():
        if path.resolve() == given.resolve():
            return name
    try:
        return Path(os.path.relpath(given.resolve(), target.parent.resolve())).as_posix()
    except ValueError:  # another drive
        return given.resolve().as_posix()
