"""Commands on the trials in a results folder: list them, compare two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kdbench.cli.application import app
from kdbench.cli.options import RUNS, AsJson, Debug, Output, Plugins
from kdbench.cli.output import show, show_json

if TYPE_CHECKING:
    from kdbench.discovery import Registry
    from kdbench.results.listing import Defaults

TrialArgument = Annotated[
    str, typer.Argument(metavar="TRIAL", help="A trial's id, a unique prefix of it, or its folder.")
]


@app.command()
def runs(
    suite: Annotated[
        str | None,
        typer.Argument(
            metavar="[SUITE]",
            help="The name of a results folder, or a suite file; with a file, 'planned' refers to its current content.",
        ),
    ] = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the trials in the results folder: status, date, settings, source, size, and whether they are planned."""
    from kdbench.discovery import discover
    from kdbench.results.listing import list_trials

    planned = None
    suites = [suite] if suite else []
    if suite and Path(suite).is_file():
        from kdbench.opening import open_suite

        opened = open_suite(suite, plugins=plugins or ())
        registry, suites = opened.registry, [opened.suite.name]
        planned = {trial.id for trial in opened.plan.trials}
    else:
        registry = discover(plugins or ())
    rows = list_trials(output, suites, default_settings(registry), planned)
    if as_json:
        show_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "status", "top-1", "date", "settings", "source", "MB", "planned"):
        table.add_column(column, overflow="fold", no_wrap=column in {"trial", "date"})
    for row in rows:
        settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        top1 = "" if row["top1"] is None else f"{row['top1']:.2f}"
        cells = (f"{row['suite']}/{row['id']}", row["status"], top1, row["date"][:16].replace("T", " "), settings)
        size, source = f"{row['bytes'] / 1e6:.1f}", str(row["source"])
        short = source if "==" in source else source[:8]
        table.add_row(*map(escape, (*cells, short, size, "yes" if row["planned"] else "no")))
    show(table)


def default_settings(registry: Registry) -> Defaults:
    """The default settings of a method; none for a method that is not installed."""
    offers = {offer.spec.name: offer for offer in registry.methods}

    def defaults(method: str) -> Mapping[str, Any]:
        if method not in offers:
            return {}
        return {key: setting.default for key, setting in offers[method].declared.settings.items()}

    return defaults


@app.command()
def diff(
    one: TrialArgument, other: TrialArgument, output: Output = RUNS, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Show the differences of two trials: settings, recipe, data, teacher, environment, source code."""
    from kdbench.results import find_folder
    from kdbench.results.compare import compare

    folders = [find_folder(name, output) for name in (one, other)]
    found = compare(*folders)
    if as_json:
        show_json({"trials": [str(folder) for folder in folders], "differences": found})
        return
    # As it is: neither markup nor line breaks belong in a diff.
    typer.echo(f"a: {folders[0]}\nb: {folders[1]}")
    code = found.pop("code", {})
    for aspect, changed in found.items():
        typer.echo(f"\n{aspect}")
        for key, (before, after) in changed.items():
            typer.echo(f"  {key}: {before!r} -> {after!r}")
    for text in code.values():
        typer.echo(f"\n{text}")
    if not found and not code:
        typer.echo("\nno difference")
