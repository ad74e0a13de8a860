"""What was measured, as tables for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from kdbench.bench.findings import EQUAL, Findings, LeftOut, Row
from kdbench.results import MAIN

SHOWN = 5
"""Left out entries of one reason that are named."""


def tables(findings: Findings) -> Iterator[Table | str]:
    """A table for each part, and what was left out."""
    if findings.machine:
        yield _machine(findings.machine)
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in findings.rows:
        parts[row.part].append(row)
    for part, rows in parts.items():
        compared = [row for row in rows if row.unit == EQUAL]
        measured = [row for row in rows if row.unit != EQUAL]
        if compared:
            yield _compared(part, compared)
        if measured:
            yield _losses(measured) if part == "losses" else _part(part, measured)
    if findings.left_out:
        yield _left_out(findings.left_out)


def number(value: float) -> str:
    """A measured value to three digits.

    >>> number(1234.5), number(12.345), number(0.012345), number(0.0)
    ('1,234', '12.3', '0.0123', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def words(settings: Mapping[str, Any]) -> str:
    """Settings in one line.

    >>> words({"pair": "a:b", "methods": ["none", "kd"], "batch_size": 64})
    'pair a:b, methods none+kd, batch size 64'
    """
    return ", ".join(
        f"{key.replace('_', ' ')} {'+'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for key, value in settings.items()
    )


def _machine(machine: Mapping[str, Any]) -> Table:
    table = Table(title="machine", title_justify="left", show_header=False)
    for key, value in machine.items():
        if value is not None:
            table.add_row(key.replace("_", " "), escape(str(value)))
    return table


def _part(part: str, rows: Sequence[Row]) -> Table:
    table = Table(title=part, title_justify="left")
    table.add_column("measured", no_wrap=True)
    table.add_column("settings", overflow="fold")
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("quartiles", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for row in rows:
        spread = " – ".join(map(number, row.spread)) if row.spread else ""
        table.add_row(
            escape(row.name), escape(words(row.settings)), number(row.value), escape(row.unit), spread, str(row.n)
        )
    return table


def _compared(part: str, rows: Sequence[Row]) -> Table:
    """What is equal in one row for each comparison, what is not in rows of their own."""
    unequal = sum(row.is_unequal for row in rows)
    said = f"[bold red]{unequal} of {len(rows)} comparisons are unequal[/]" if unequal else f"all {len(rows)} equal"
    table = Table(title=f"{part}: {said}", title_justify="left")
    table.add_column("compared", no_wrap=True)
    table.add_column("settings", overflow="fold")
    table.add_column("bits", no_wrap=True)
    for row in (row for row in rows if row.is_unequal):
        table.add_row(escape(row.name), escape(words(row.settings)), "[bold red]unequal[/]")
    for (name, settings), methods in _alike(rows).items():
        more = f"methods {'+'.join(methods)}" if len(methods) > 1 else f"method {methods[0]}"
        table.add_row(escape(name), escape(", ".join(filter(None, [settings, more]))), "equal")
    return table


def _alike(rows: Sequence[Row]) -> Mapping[tuple[str, str], list[str]]:
    """The methods of equal comparisons, by name and by settings that are not the method's own."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if not row.is_unequal:
            own = ("method", "replays", "pair")
            rest = {key: value for key, value in row.settings.items() if key not in own}
            groups[row.name, words(rest)].append(str(row.settings.get("method", "")))
    return groups


def _losses(rows: Sequence[Row]) -> Table:
    """A row for each loss, a column for each batch size and width."""
    cells: dict[str, dict[tuple[int, int], dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        size = row.settings["batch"], row.settings["width"]
        loss, stage = row.settings["loss"], row.settings["stage"]
        cells[loss if stage == MAIN else f"{loss}, stage {stage}"][size][row.unit] = number(row.value)
    sizes = sorted({size for found in cells.values() for size in found})
    title = "losses: median of forward and backward in ms / peak memory in MiB, by batch size x width"
    table = Table(title=title, title_justify="left")
    table.add_column("loss", no_wrap=True)
    for B, D in sizes:
        table.add_column(f"{B}x{D}", justify="right", no_wrap=True)
    for loss, found in cells.items():
        texts = {size: f"{values.get('ms', '?')} / {values.get('MiB', '?')}" for size, values in found.items()}
        table.add_row(escape(loss), *(texts.get(size, "") for size in sizes))
    return table


def _left_out(entries: Sequence[LeftOut]) -> Table:
    """One row for each part, name and reason."""
    groups: dict[tuple[str, str, str, bool], list[str]] = defaultdict(list)
    for entry in entries:
        groups[entry.part, entry.name, entry.reason, entry.failed].append(words(entry.settings))
    table = Table(title="not measured", title_justify="left")
    for column in ("part", "what", "number", "settings", "reason"):
        table.add_column(column, overflow="fold", justify="right" if column == "number" else "left")
    for (part, name, reason, failed), settings in groups.items():
        said = f"[bold red]failed:[/] {escape(reason)}" if failed else escape(reason)
        table.add_row(part, escape(name), str(len(settings)), escape(_first(settings)), said)
    return table


def _first(settings: Sequence[str]) -> str:
    more = len(settings) - SHOWN
    return "; ".join(settings[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
