"""Reports of checks as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from kdbench.testing.runner import Report, Status

_STYLES = {
    Status.PASSED: "green",
    Status.FAILED: "bold red",
    Status.SKIPPED: "yellow",
    Status.EXPECTED_FAILURE: "magenta",
}

_ORDER = (Status.FAILED, Status.EXPECTED_FAILURE, Status.SKIPPED, Status.PASSED)


def of_one(report: Report) -> Iterable[Table | str]:
    """All checks of one method or model: question, outcome, reason."""
    tried_on = _listed(report.tried_on) or ("no pair" if report.kind == "method" else "no image shape")
    title = f"{report.name}, {report.distribution} {report.version}, on {tried_on}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("question", overflow="fold")
    table.add_column("result", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for result in report.results:
        status = f"[{_STYLES[result.status]}]{result.status.value}[/]"
        table.add_row(result.check, escape(result.question), status, escape(result.reason))
    yield table
    for place, reason in report.refused.items():
        yield f"not on {escape(place)}: {escape(reason)}"
    yield summary([report])


def of_several(reports: Sequence[Report], not_checked: Mapping[str, str]) -> Iterable[Table | str]:
    """One row for each method or model, and below the reasons of failed and skipped checks, with their names."""
    table = Table()
    table.add_column(" or ".join(dict.fromkeys(report.kind for report in reports)), no_wrap=True)
    table.add_column("tried on", justify="right")
    for status in Status:
        table.add_column(status.value, justify="right" if status is Status.PASSED else "left", overflow="fold")
    for report in reports:
        what = "pairs" if report.kind == "method" else "image shapes"
        tried_on = f"{len(report.tried_on)} of {len(report.tried_on) + len(report.refused)} {what}"
        table.add_row(escape(report.name), tried_on, *(_cell(report, status) for status in Status))
    yield table
    reasons: dict[tuple[Status, str, str], list[str]] = {}
    for report in reports:
        for result in report.results:
            if result.status is not Status.PASSED:
                reasons.setdefault((result.status, result.check, result.reason), []).append(report.name)
    for (status, check, reason), names in sorted(reasons.items(), key=lambda item: _ORDER.index(item[0][0])):
        yield f"[{_STYLES[status]}]{status.value}[/]: {check}: {escape(reason)} ({escape(_listed(names))})"
    for reason in not_checked.values():
        yield f"[yellow]not checked[/]: {escape(reason)}"
    yield summary(reports)


def _cell(report: Report, status: Status) -> str:
    results = report.having(status)
    if status is Status.PASSED:
        return str(len(results))
    return f"[{_STYLES[status]}]{', '.join(result.check for result in results)}[/]" if results else ""


def summary(reports: Sequence[Report]) -> str:
    """The number of checks by outcome."""
    counts = {status: sum(len(report.having(status)) for report in reports) for status in Status}
    words = {Status.EXPECTED_FAILURE: "expected failures"}
    parts = (f"[{_STYLES[s]}]{n} {words.get(s, s.value)}[/]" for s, n in counts.items() if n)
    kinds = [report.kind for report in reports]
    numbers = ((kinds.count(kind), kind) for kind in dict.fromkeys(kinds))
    counted = ", ".join(f"{number} {kind}{'s' if number > 1 else ''}" for number, kind in numbers)
    return (f"{counted}: " if len(reports) > 1 else "") + ", ".join(parts)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names))
