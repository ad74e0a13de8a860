"""The arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="A suite file, or the name of a shipped suite.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("-m", "--method", metavar="GLOB", help="Only methods whose name or label matches; may be repeated."),
]
Pairs = Annotated[
    list[str] | None, typer.Option("--pair", metavar="TEACHER:STUDENT", help="Only this pair; may be repeated.")
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", metavar="N", help="Only this seed; may be repeated.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in recipe.epochs=3; may be repeated."),
]
Plugins = Annotated[
    list[Path] | None, typer.Option("-p", "--plugin", metavar="FILE", help="Load a local plugin; may be repeated.")
]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder of all results.")]
ReportDir = Annotated[Path, typer.Option("--report-dir", metavar="DIR", help="Folder of all reports.")]
ReportName = Annotated[
    str | None,
    typer.Option(
        "--report-name",
        metavar="NAME",
        help="Name of the report's folder; default: the suite's name, with the values of --set, -m, --pair and --seed.",
    ),
]
Highlight = Annotated[
    list[str] | None,
    typer.Option(
        "--highlight", metavar="LABEL", help="Mark this method in the report's tables and figures; may be repeated."
    ),
]
Parts = Annotated[
    int | None,
    typer.Option(
        "--parts", metavar="N", min=1, help="Divide each cohort into N parts, each with its own pass of the teacher."
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="MLflow's store, or 'none'; default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

RUNS, REPORTS = Path("runs"), Path("reports")
