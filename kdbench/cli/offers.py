"""Commands that list and describe what plugins offer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kdbench.cli.application import app
from kdbench.cli.options import AsJson, Debug, Plugins
from kdbench.cli.output import plain, show, show_json, show_warning
from kdbench.errors import PluginError, did_you_mean
from kdbench.hookspecs import KINDS, ModelSpec

if TYPE_CHECKING:
    from kdbench.discovery import Offer, Registry


PLUGINS, SUITES = "plugins", "suites"
LISTED = [*(kind.plural for kind in KINDS), PLUGINS, SUITES]


def _listed(kind: str) -> str:
    if kind not in LISTED:
        raise typer.BadParameter(f"'{kind}' cannot be listed{did_you_mean(kind, LISTED)}")
    return kind


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help=f"What to list: {', '.join(LISTED)}.", callback=_listed)],
    plugins: Plugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List what the installed plugins offer."""
    if kind == SUITES:
        _list_suites(as_json)
        return
    from kdbench.discovery import ADAPTERS, discover

    registry = discover(plugins or ())
    specs = {kind.plural: kind.spec for kind in KINDS}
    rows = registry.to_json() if kind == PLUGINS else registry.rows(registry.offers[specs[kind]])
    if as_json:
        show_json(rows)
    else:
        show(_listing(kind, rows))
        libraries = [library for spec, library in ADAPTERS if spec is specs.get(kind)]
        if libraries:
            names = " and ".join(f"{library}:NAME" for library in libraries)
            show(f"also those of {' and '.join(libraries)}: {names}")
    for broken in registry.broken if kind != PLUGINS else ():
        show_warning(f"plugin {broken}")


def _listing(kind: str, rows: Sequence[dict[str, Any]]) -> Table:
    columns = {
        "methods": ("name", "summary", "paper", "reads", "distribution"),
        PLUGINS: ("name", "distribution", "version", "problem"),
    }.get(kind, ("name", "summary", "paper", "distribution"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        cells = (row[column] for column in columns)
        table.add_row(*(escape(", ".join(c) if isinstance(c, list) else str(c or "")) for c in cells))
    return table


def _list_suites(as_json: bool) -> None:
    from kdbench.suite.load import read, shipped

    rows = []
    for name, path in shipped().items():
        tables = read(path)
        rows.append({"name": name, "question": tables.get("question", ""), "cost": tables.get("cost", "")})
    if as_json:
        show_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "question", "cost"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row.values()))
    show(table)


@app.command()
def describe(
    name: Annotated[
        str,
        typer.Argument(help="Anything that can be listed, or a part of a suite file: recipe, pairs, data."),
    ],
    plugins: Plugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Describe an offer or a part of a suite file: settings, paper, taps, adapters, package."""
    from kdbench import reference
    from kdbench.discovery import discover

    registry = discover(plugins or ())
    rows = reference.rows(name)
    offers = _named(registry, name, reference.names() if not rows else None)
    if offers:
        from kdbench.describe import describe_offer

        rows += [describe_offer(offer, registry) for offer in offers]
    if as_json:
        show_json(rows[0] if len(rows) == 1 else rows)
        return
    for row in rows:
        show(_description(row))


def _named(registry: Registry, name: str, others: Sequence[str] | None) -> list[Offer[Any]]:
    """Everything on offer called ``name``: two kinds may share a name.

    Raises ``PluginError`` where there is none, with the nearest name, also of ``others``; none is needed where
    ``others`` is None.
    """
    from kdbench.discovery import ADAPTERS

    everything = [offer for offers in registry.offers.values() for offer in offers]
    found = [o for o in everything if name in (o.spec.name, f"{o.provider.distribution}:{o.spec.name}")]
    if not found and ":" in name:
        library = name.partition(":")[0]
        adapted = [spec for spec, of in ADAPTERS if of == library]
        found = [registry.find(spec, name) for spec in adapted[:1] or [ModelSpec]]
    if not found and others is not None:
        known = {*others, *(o.spec.name for o in everything)}
        broken = "".join(f" ({item})" for item in registry.broken)
        raise PluginError(f"nothing on offer is called '{name}'{did_you_mean(name, known)}{broken}")
    return found


def _description(row: dict[str, Any]) -> Table:
    table = Table(title=f"{row['kind']} {row['name']}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in row.items():
        if key in {"kind", "name"} or value in (None, "", [], {}):
            continue
        table.add_row(key.replace("_", " "), escape(_in_lines(value)))
    return table


def _in_lines(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(
            f"{key} = {json.dumps(v['default'], default=plain)}  ({v['type']})" + _meaning(v)
            if isinstance(v, dict) and "default" in v
            else f"{key}: {v}"
            for key, v in value.items()
        )
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _meaning(setting: dict[str, Any]) -> str:
    return f": {setting['description']}" if setting.get("description") else ""
