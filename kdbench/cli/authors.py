"""Commands for authors of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.application import app
from kdbench.cli.options import Debug
from kdbench.cli.output import show


@app.command("new-method")
def new_method(
    name: Annotated[str, typer.Argument(help="The method's name: lower-case letters, digits and dashes.")],
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Output folder; default: kdbench-NAME.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Create a package for a loss: installable, with tests and a suite that compares it."""
    from kdbench.discovery import discover
    from kdbench.scaffold import check_name, create

    names = check_name(name, discover())
    target = directory or Path(names.distribution)
    for path in create(names, target):
        show(f"wrote {path}")
    show(f"next:  cd {target}  and follow README.md")
