"""What a report was made from, as one digest that its page carries: one that is up to date need not be made again."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import kdbench
from kdbench.report.parts import Parts, parts_of
from kdbench.report.study import NO_PLAN
from kdbench.results import PlanRecord, SuiteFolder
from kdbench.status import Status

FILES = ("trials.csv", "leaderboard.csv", "leaderboard.md", "index.html")
_READ = ("trial.json", "epochs.jsonl", "result.json", "error.json")
_META = re.compile(r'<meta name="kdbench:made-from" content="([0-9a-f]{64})">')


def digest(
    folder: SuiteFolder,
    *,
    plan: PlanRecord | None = None,
    filters: str = "",
    plots: bool = True,
    parts: Parts | None = None,
) -> str:
    """The SHA-256 of all that makes a report: its plan, the results so far, what is shown of them, and its code.

    ``plan``: the plan that is reported, instead of the last one. ``parts``: its sections and figures; without them,
    those of the plugins that the plan names.
    """
    plan = plan or folder.plan or NO_PLAN
    parts = parts or parts_of(plan)
    given = [_own_code(), folder.path.name, filters, plots, _read_of(plan), parts.to_json()]
    sha = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
    trials = list(folder) if plan is NO_PLAN else [folder.trial(row.id) for row in plan.trials]
    places = {trial.path: trial.damage() for trial in trials}
    places |= {folder.teacher(teacher.key).path: "" for teacher in plan.teachers}
    for place, damage in places.items():
        # Names come before contents and contents have lengths, so that nothing can pass for something else.
        sha.update(f"\n{place.name} {damage}".encode())
        for name in _READ:
            try:
                content = (place / name).read_bytes()
            except OSError:
                continue
            sha.update(f"\n{name} {len(content)}\n".encode())
            sha.update(content)
    return sha.hexdigest()


def _read_of(plan: PlanRecord) -> dict[str, Any]:
    """What a report reads of a plan. The state of a trial is read from its folder, unless it was skipped."""
    read_elsewhere = {"status": "", "reason": ""}
    rows = [row.model_dump() | ({} if row.status is Status.SKIPPED else read_elsewhere) for row in plan.trials]
    return {**plan.model_dump(exclude={"trials", "report", "environment", "updated"}), "trials": rows}


def _own_code() -> str:
    """kdbench's version, and what a checkout may change without changing it."""
    sha = hashlib.sha256(kdbench.__version__.encode())
    room = Path(__file__).parent
    for path in sorted(path for path in room.rglob("*") if path.suffix in {".py", ".j2", ".css", ".js", ".csv"}):
        sha.update(f"\n{path.relative_to(room)}\n".encode() + path.read_bytes())
    return sha.hexdigest()


def is_current(report: Path, wanted: str) -> bool:
    """Whether a whole report stands in ``report`` whose :func:`digest` is ``wanted``."""
    if not all((report / name).is_file() for name in FILES) or not any((report / "plots").glob("*.svg")):
        return False
    with (report / "index.html").open(encoding="utf-8", errors="replace") as page:
        found = _META.search(page.read(2000))
    return found is not None and found[1] == wanted
