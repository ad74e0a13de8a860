"""Commands on what plugins offer: list it, describe it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kdbench.cli.application import app
from kdbench.cli.options import AsJson, Debug, Plugins
from kdbench.cli.output import plain, show, show_json, show_warning
from kdbench.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from kdbench.plugins import Offer, Registry


class Kind(StrEnum):
    """What ``kdbench list`` can list."""

    METHODS = "methods"
    MODELS = "models"
    DATASETS = "datasets"
    PLUGINS = "plugins"
    SUITES = "suites"


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    plugins: Plugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List what the installed plugins offer."""
    if kind is Kind.SUITES:
        _list_suites(as_json)
        return
    from kdbench.plugins import discover

    registry = discover(plugins or ())
    rows = registry.to_json() if kind is Kind.PLUGINS else registry.rows(getattr(registry, kind.value))
    if as_json:
        show_json(rows)
    else:
        show(_listing(kind, rows))
        if kind is Kind.MODELS:
            show("and any model of torchvision or timm, as torchvision:NAME and timm:NAME")
    for broken in registry.broken if kind is not Kind.PLUGINS else ():
        show_warning(f"plugin {broken}")


def _listing(kind: Kind, rows: Sequence[dict[str, Any]]) -> Table:
    columns = {
        Kind.METHODS: ("name", "summary", "paper", "reads", "distribution"),
        Kind.PLUGINS: ("name", "distribution", "version", "problem"),
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
        typer.Argument(help="A method, model or data set; or recipe, pairs, crop, adamw: keys of a suite."),
    ],
    plugins: Plugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Describe a method, model, data set, or keys of a suite: settings, paper, taps, adapters, who provides it."""
    from kdbench import reference
    from kdbench.plugins import discover

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
    """Everything on offer called ``name``: a method and a model may share one.

    Raises ``PluginError`` where there is none, with the nearest name, also of ``others``; none is needed where
    ``others`` is None.
    """
    found: list[Offer[Any]] = []
    for kind in (registry.methods, registry.models, registry.datasets):
        offers: list[Offer[Any]] = list(kind)
        found += [o for o in offers if name in (o.spec.name, f"{o.provider.distribution}:{o.spec.name}")]
    if not found and ":" in name:
        found.append(registry.model(name))
    if not found and others is not None:
        everything: list[Offer[Any]] = [*registry.methods, *registry.models, *registry.datasets]
        known = {*others, *(o.spec.name for o in everything)}
        broken = "".join(f" ({item})" for item in registry.broken)
        raise PluginError(f"no method, model or data set is called '{name}'{did_you_mean(name, known)}{broken}")
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
