"""Commands on trained students."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from kdbench.cli.application import app
from kdbench.cli.options import RUNS, Debug, Output, Plugins
from kdbench.cli.output import show, show_warning


class Form(StrEnum):
    """The forms that ``kdbench export`` writes."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    ONNX = "onnx"


@app.command()
def export(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's id, a unique prefix of it, or its folder.")],
    to: Annotated[
        Form, typer.Option("--to", help="Weights as safetensors or for torch.load, or an ONNX program.")
    ] = Form.SAFETENSORS,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Output file or folder; default: named after the trial."),
    ] = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    debug: Debug = False,
) -> None:
    """Write a trained student without its adapters, with a model card."""
    from kdbench.export import export_trial

    written = export_trial(trial, to.value, out, output=output, plugins=plugins or (), warn=show_warning)
    show(escape(f"student: {written.file}"))
    show(escape(f"model card: {written.card}"))
