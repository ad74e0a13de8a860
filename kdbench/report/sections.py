"""The built-in sections of the page: one function each, which returns the variables of its template.

A function returns None if its section has no content; the section is then omitted. To add a section,
write its function and ``templates/sections/<name>.html.j2``, and add it to :mod:`kdbench.report.builtin`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from kdbench.metrics import HEADLINE
from kdbench.report import protocol, wording
from kdbench.report import tuning as tuned
from kdbench.report.published import comparison
from kdbench.report.strip import limits, strip
from kdbench.report.study import Study
from kdbench.report.variation import variation
from kdbench.report.verdict import notes_on, standings, verdicts
from kdbench.status import FINISHED, Status
from kdbench.suite.plan import shown_teacher

PAIRS_IN_SENTENCES = 3
NOT_MEASURED = "not measured: the trial finished before the metric was added to the suite"
Context = Mapping[str, Any]


def verdict(study: Study) -> Context:
    """The highest mean and the differences to it: in sentences, and with many pairs in a table."""
    said = verdicts(study)
    if len(study.pairs) <= PAIRS_IN_SENTENCES:
        return {"verdicts": said, "standings": []}
    found = [standings(study, pair) for pair in study.pairs]
    return {"verdicts": said[:1], "standings": [(one, _plain(one.best)) for one in found]}


def overall(study: Study) -> Context | None:
    """Ranks and gains over pairs, and the table of methods by pairs."""
    if len(study.pairs) < 2 or study.cells["n"].sum() == 0:
        return None
    gains = study.cells[study.reference.gain].abs()
    return {
        "overall": study.overall,
        "columns": [
            {
                "pair": pair,
                "teacher": str(study.pair(pair)["teacher"].iloc[0]),
                "student": str(study.pair(pair)["student"].iloc[0]),
                "teacher_top1": study.teacher_top1(pair),
                "cells": {row["label"]: row for row in _rows(study.pair(pair))},
                "highest": _highest(study.pair(pair)),
            }
            for pair in study.pairs
        ],
        # Shading is full at the 90th percentile, so that one outlier does not make the other shades too light.
        "full_shade": max(float(gains.quantile(0.9)) if gains.notna().any() else 1.0, 0.1),
    }


def pairs(study: Study) -> Context | None:
    """One table per pair."""
    tables = []
    found = [standings(study, pair) for pair in study.pairs]
    for pair in study.pairs:
        cells = study.pair(pair)
        done = study.done(pair)
        base = _first(cells.loc[cells["label"] == study.reference.label, "top1_mean"])
        range_ = limits(list(done["top1"]), [] if base is None else [base])
        tops = {str(label): list(values) for label, values in done.groupby("label")["top1"]}
        title = study.title(pair)
        rows = []
        for row in _rows(cells):
            seeds = tops.get(row["label"], [])
            drawn = strip(seeds, row["top1_mean"], row["top1_std"], base, range_)
            rows.append({**row, "strip": drawn, "strip_label": _spoken(title, row, seeds, base, study.reference.label)})
        first = cells.iloc[0]
        tables.append(
            {
                "pair": pair,
                "title": title,
                "teacher": first["teacher"],
                "student": first["student"],
                "teacher_top1": study.teacher_top1(pair),
                "rows": rows,
                "highest": _highest(cells),
                "notes": notes_on(standings(study, pair)),
                "range": range_ if len(done) else None,
                "seeds": sorted(set(study.trials.loc[study.trials["pair"] == pair, "seed"])),
                "parameters": _first(cells["student_parameters"].dropna()),
            }
        )
    return {
        "tables": tables,
        "diverged": any(row["diverged"] for table in tables for row in table["rows"]),
        "extra": any(row["extra_epochs"] for table in tables for row in table["rows"]),
        "open": len(tables) <= 6,
        # By pair, when the page asks for it: the other formats do not show it.
        "variation": partial(variation, study),
        "varies": any(one.best is not None and one.others for one in found),
        "new_teachers": all(one.new_teachers for one in found if one.noise is not None),
        "baselines": [
            baseline
            for baseline in study.baselines
            if baseline is study.reference or baseline.label in set(study.trials["label"])
        ],
        "validation": study.selects_on_validation,
    }


def _spoken(title: str, row: Mapping[str, Any], tops: Sequence[float], base: float | None, reference: str) -> str:
    """The drawing of a row in words."""
    if not tops:
        return f"{title}, {row['label']}: no result"
    spread = f", standard deviation {wording.number(row['top1_std'])}" if row["top1_std"] is not None else ""
    line = f"; mean of {reference} {wording.number(base)}" if base is not None else ""
    seeds = wording.listing([wording.number(top1) for top1 in tops])
    return f"{title}, {row['label']}: mean {wording.number(row['top1_mean'])} %{spread}; seeds {seeds}{line}"


def beside(study: Study) -> Context | None:
    """Metrics other than top-1."""
    rows = _rows(study.cells[study.cells["n"] > 0])
    metrics = [
        metric
        for name, metric in study.metrics.items()
        if name != HEADLINE and (name in study.added or any(row[f"{name}_mean"] is not None for row in rows))
    ]
    validation = any(row["validation_top1_mean"] is not None for row in rows)
    return {"rows": rows, "metrics": metrics, "validation": validation, **_added(study)} if rows else None


def _added(study: Study) -> Context:
    """For metrics added by the suite: the trials with a value per pair and method, and why values are missing."""
    done = study.trials[study.trials["status"] == Status.DONE]
    measured = {
        (pair, label): group[list(study.added)].notna().sum().to_dict()
        for (pair, label), group in done.groupby(["pair", "label"], sort=False)
    }
    notes = []
    for name, metric in study.added.items():
        reasons: Counter[str] = Counter()
        for identifier in done.loc[done[name].isna(), "id"]:
            result = study.folder.trial(str(identifier)).result
            unmeasured = result.unmeasured if result is not None else {}
            reasons[unmeasured.get(name, NOT_MEASURED)] += 1
        for reason, count in reasons.items():
            notes.append(f"{metric.heading}: missing in {count} of {wording.plural(len(done), 'trial')}: {reason}.")
    return {"measured": measured, "notes": notes}


def costs(study: Study) -> Context | None:
    """Training time, memory and parameters of each method."""
    rows = _rows(study.cells[study.cells["n"] > 0])
    if not rows:
        return None
    devices = sorted(set(study.trials.loc[study.trials["status"] == Status.DONE, "device"]) - {""})
    reference = {row["pair"]: row["seconds"] for row in rows if row["label"] == study.reference.label}
    for row in rows:
        base = reference.get(row["pair"])
        row["relative"] = row["seconds"] / base if base and row["seconds"] else None
    return {
        "rows": rows,
        "memory": any(row["peak_memory_bytes"] is not None for row in rows),
        "devices": devices,
        "teachers": _teachers(study),
        "shared": _shared(study),
    }


def _shared(study: Study) -> list[tuple[str, int, int]]:
    """Methods that were trained once for several teachers: label, adopted results, and all results."""
    finished = study.trials[study.trials["status"].isin(FINISHED)]
    counts = [
        (str(label), int((rows["adopted_from"] != "").sum()), len(rows))
        for label, rows in finished.groupby("label", sort=False)
    ]
    return [row for row in counts if row[1]]


def published(study: Study) -> Context | None:
    """Comparison with published results."""
    table = comparison(study.cells, study.data)
    if table.empty:
        return None
    groups = [(source, _rows(rows)) for source, rows in table.groupby("source", sort=False)]
    return {"groups": groups, "ours": protocol.ours(study)}


def uncounted(study: Study) -> Context | None:
    """Trials that are excluded from means, with the reason."""
    rest = study.trials[study.trials["status"] != Status.DONE]
    if rest.empty:
        return None
    groups = []
    for status, meaning in protocol.STATES.items():
        chosen = rest[rest["status"] == status]
        rows = [
            {
                "pair": study.title(str(first["pair"])),
                "label": first["label"],
                "seeds": wording.listing([str(seed) for seed in group["seed"]]),
                "count": len(group),
                "reason": reason,
            }
            for (_, _, reason), group in chosen.groupby(["pair", "label", "reason"], sort=False)
            for first in [group.iloc[0]]
        ]
        if rows:
            groups.append({"status": status, "meaning": meaning, "rows": rows, "trials": len(chosen)})
    return {"groups": groups}


def tuning(study: Study) -> Context | None:
    """The budget, the values tried, and the default and chosen settings of each method."""
    found = tuned.record(study)
    if found is None:
        return None
    rows = tuned.rows(study, found)
    return {
        "pair": found.pair.replace(":", " → "),
        "seed": found.seed,
        "budget": wording.plural(found.trials, "configuration"),
        # The number of each method is worth a column only if one of them differs.
        "counted": any(row["trials"] != found.trials or row["without_result"] for row in rows),
        "images": tuned.images(study),
        "rows": rows,
    }


def rules(study: Study) -> Context:
    """The protocol in sentences."""
    return {
        "paragraphs": protocol.paragraphs(study),
        "recipe": protocol.recipe_rows(study),
        "settings": protocol.settings_rows(study),
        "teachers": _teachers(study),
    }


def environment(study: Study) -> Context:
    """The environments of the trials, and how to reproduce the results."""
    return {
        "command": protocol.command(study),
        "from_python": protocol.from_python(study),
        "environments": protocol.environments(study),
        "plugins": sorted(
            {(row.plugin, row.plugin_version) for row in study.trials[study.trials["plugin"] != ""].itertuples()}
        ),
        "updated": study.plan.updated,
    }


def _teachers(study: Study) -> list[dict[str, Any]]:
    known = study.trials[study.trials["status"].isin(FINISHED) & (study.trials["teacher_sha256"] != "")]
    rows = []
    several = known.groupby("teacher")["teacher_key"].nunique() > 1
    for (teacher, _), group in known.groupby(["teacher", "teacher_key"], sort=False):
        first = group.iloc[-1]
        key = str(first["teacher_key"])
        folder = study.folder.teacher(key)
        result, made = folder.recorded, folder.description
        rows.append(
            {
                "name": shown_teacher(str(teacher), made.seed if made is not None and several[teacher] else None),
                "top1": None if pd.isna(first["teacher_top1"]) else float(first["teacher_top1"]),
                "sha256": first["teacher_sha256"],
                "key": key,
                "seconds": result.cost.seconds if result else None,
                "epochs": made.epochs if made else None,
                "recipe": protocol.teacher_recipe(study, made),
            }
        )
    return rows


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Records with None for missing values."""
    return [_plain(record) for record in frame.to_dict("records")]


def _plain(record: Mapping[Any, Any] | None) -> dict[str, Any]:
    return {str(key): None if _is_missing(value) else value for key, value in (record or {}).items()}


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _highest(cells: pd.DataFrame) -> float | None:
    """The rank of the highest mean of a pair; above 1 if several methods share it."""
    ranks = cells.loc[cells["diverged"] == 0, "rank"].dropna()
    return float(ranks.min()) if len(ranks) else None


def _first(values: pd.Series) -> Any:
    known = values.dropna()
    return known.iloc[0] if len(known) else None
