"""The report at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kdbench.discovery import Registry
from kdbench.errors import KdbenchError
from kdbench.report import made_from
from kdbench.report.parts import parts_of
from kdbench.results import NO_PLAN, PlanRecord, SuiteFolder
from kdbench.suite.filters import Filters


def write_report(
    folder: SuiteFolder,
    report: Path,
    warn: Callable[[str], None],
    plan: PlanRecord | None = None,
    filters: Filters | None = None,
    registry: Registry | None = None,
    highlight: Sequence[str] = (),
) -> None:
    """Render the report of the results so far, unless it is up to date. An error here does not affect the results."""
    filters = filters or Filters()
    try:
        parts = parts_of(plan or folder.plan or NO_PLAN, registry)
        wanted = made_from.digest(folder, plan=plan, filters=filters.describe(), parts=parts, highlight=highlight)
        if made_from.is_current(report, wanted):
            return
        from kdbench.report.render import render

        render(
            folder,
            report,
            plan=plan,
            methods=filters.methods,
            pairs=filters.pairs,
            seeds=filters.seeds,
            highlight=highlight,
            parts=parts,
            warn=warn,
        )
    except Exception as error:  # noqa: BLE001 - hours of training must not end in a page's fault
        what = str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"
        warn(f"the report was not written: {what}; the results are saved; run kdbench report to write it")
