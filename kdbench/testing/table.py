"""Reports of checks as tables for people."""

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


def of_method(report: Report) -> Iterable[Table | str]:
    """Every check of one method: what it asks, how it came out, why."""
    title = f"{report.method}, {report.distribution} {report.version}, on {_listed(report.pairs) or 'no pair'}"
    table = Table(title=title, title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("question", overflow="fold")
    table.add_column("result", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for result in report.results:
        status = f"[{_STYLES[result.status]}]{result.status.value}[/]"
        table.add_row(result.check, escape(result.question), status, escape(result.reason))
    yield table
    for pair, reason in report.unread.items():
        yield f"not on {pair}: {escape(reason)}"
    yield summary([report])


def of_methods(reports: Sequence[Report], not_checked: Mapping[str, str]) -> Iterable[Table | str]:
    """One row a method, and below it the reason of everything that did not pass."""
    table = Table(show_lines=True)
    table.add_column("method", no_wrap=True)
    for status in Status:
        table.add_column(status.value, justify="right" if status is Status.PASSED else "left", overflow="fold")
    for report in reports:
        table.add_row(escape(report.method), *(_cell(report, status) for status in Status))
    yield table
    for report in reports:
        for result in report.results:
            if result.status in {Status.FAILED, Status.EXPECTED_FAILURE}:
                yield f"{report.method}: [{_STYLES[result.status]}]{result.check}[/]: {escape(result.reason)}"
    for name, reason in not_checked.items():
        yield f"{name}: [yellow]not checked[/]: {escape(reason)}"
    yield summary(reports)


def _cell(report: Report, status: Status) -> str:
    results = report.having(status)
    if status is Status.PASSED:
        return str(len(results))
    return f"[{_STYLES[status]}]{', '.join(result.check for result in results)}[/]" if results else ""


def summary(reports: Sequence[Report]) -> str:
    """How many checks came out how."""
    counts = {status: sum(len(report.having(status)) for report in reports) for status in Status}
    words = {Status.EXPECTED_FAILURE: "expected failures"}
    parts = (f"[{_STYLES[s]}]{n} {words.get(s, s.value)}[/]" for s, n in counts.items() if n)
    methods = f"{len(reports)} methods: " if len(reports) > 1 else ""
    return methods + ", ".join(parts)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names))
