"""A digest of the inputs of a report, stored in its page: an up-to-date report need not be rendered again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kdbench
from kdbench.report.parts import PageParts, parts_of
from kdbench.results import NO_PLAN, PlanRecord, SuiteFolder
from kdbench.status import Status

FILES = ("trials.csv", "leaderboard.csv", "overall.csv", "leaderboard.md", "index.html")
_READ = ("trial.json", "epochs.jsonl", "result.json", "error.json")
_META = re.compile(r'<meta name="kdbench:made-from" content="([0-9a-f]{64})">')


def digest(
    folder: SuiteFolder,
    *,
    plan: PlanRecord | None = None,
    filters: str = "",
    plots: bool = True,
    parts: PageParts | None = None,
    highlight: Sequence[str] = (),
) -> str:
    """The SHA-256 of the inputs of a report: plan, results so far, filters, highlighted labels, and its code.

    ``plan``: the plan to report; by default the last one. ``parts``: its sections and figures; by default those of
    the plugins that the plan names.
    """
    plan = plan or folder.plan or NO_PLAN
    parts = parts or parts_of(plan)
    given = [_own_code(), folder.path.name, filters, plots, _read_of(plan), parts.to_json(), sorted(highlight)]
    sha = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
    trials = list(folder) if plan is NO_PLAN else [folder.trial(row.id) for row in plan.trials]
    places = {trial.path: trial.damage() for trial in trials}
    places |= {folder.teacher(teacher.key).path: "" for teacher in plan.teachers}
    for place, damage in places.items():
        # Each content is preceded by its name and length, so that the encoding is unambiguous.
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
    """The parts of a plan that a report uses. The state of a trial is read from its folder, unless it was skipped."""
    read_elsewhere = {"status": "", "reason": ""}
    rows = [row.model_dump() | ({} if row.status is Status.SKIPPED else read_elsewhere) for row in plan.trials]
    return {**plan.model_dump(exclude={"trials", "report", "environment", "updated"}), "trials": rows}


def _own_code() -> str:
    """A digest of the version of kdbench and the source of this package, which may change in a checkout."""
    sha = hashlib.sha256(kdbench.__version__.encode())
    package = Path(__file__).parent
    for path in sorted(path for path in package.rglob("*") if path.suffix in {".py", ".j2", ".css", ".js", ".csv"}):
        sha.update(f"\n{path.relative_to(package)}\n".encode() + path.read_bytes())
    return sha.hexdigest()


def is_current(report: Path, wanted: str) -> bool:
    """Whether ``report`` contains a complete report with the :func:`digest` ``wanted``."""
    if not all((report / name).is_file() for name in FILES) or not any((report / "plots").glob("*.svg")):
        return False
    with (report / "index.html").open(encoding="utf-8", errors="replace") as page:
        found = _META.search(page.read(2000))
    return found is not None and found[1] == wanted
