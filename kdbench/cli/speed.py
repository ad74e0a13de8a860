"""The command that measures how fast this machine is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.application import OK, SOME_CHECK_FAILED, app
from kdbench.cli.options import AsJson, Debug
from kdbench.cli.output import show, show_json, show_warning, stderr


@app.command()
def bench(
    device: Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    minutes: Annotated[
        float,
        typer.Option("--minutes", metavar="M", min=0.1, help="Time for all parts; the rest is left out."),
    ] = 8.0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="JSON of all results, replaced after each measurement.")
    ] = Path("kdbench-bench.json"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PART",
            help="Only machine, correctness, data, cohorts, kernels, layout, pairs or losses; may be repeated. "
            "The time is theirs alone.",
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure how fast this machine trains, and whether correctly; docs/performance.md explains the numbers."""
    # Its profiler warns on standard error of memory that was allocated before. The variable is read on import.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from kdbench.bench import Findings, LeftOut, Part, Row, measure
    from kdbench.bench.parts import chosen
    from kdbench.bench.table import tables, words
    from kdbench.discovery import discover
    from kdbench.engine.device import choose_device, device_name

    parts = chosen(only or ())
    where = choose_device(device)
    conditions = {"device": str(where), "minutes": minutes, "parts": [part.name for part in parts]}
    findings = Findings(out, conditions)
    with stderr().status("") as status:

        def say(entry: Row | LeftOut) -> None:
            status.update(f"{entry.part}: {entry.name}, {words(entry.settings)}")

        def begun(part: Part) -> None:
            status.update(f"{part.name}: {part.summary}")

        findings.listener = say
        try:
            measure(where, discover(), findings, seconds=60 * minutes, parts=parts, begun=begun)
        except KeyboardInterrupt:
            show_warning(f"interrupted; {out} has the results so far")
            raise
        finally:
            if as_json:
                show_json(findings.to_json())
            else:
                for part in tables(findings):
                    show(part)
    if not as_json:
        show(f"measured on {device_name(where)}; all results are in {out}")
    raise typer.Exit(SOME_CHECK_FAILED if findings.failed else OK)
