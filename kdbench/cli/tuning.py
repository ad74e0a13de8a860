"""The command that tunes the methods of a suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kdbench.cli.application import OK, SOME_TRIAL_FAILED, app, exit_code_of
from kdbench.cli.options import RUNS, Debug, Methods, Output, Overrides, Plugins, SuiteArgument, TrackingUri
from kdbench.cli.output import show, show_error
from kdbench.words import plural

if TYPE_CHECKING:
    from kdbench.tune import Row, Tuned


@app.command()
def tune(
    suite: SuiteArgument,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            metavar="N",
            min=1,
            help="Configurations of each method; default: tune.trials of the suite, or 16.",
        ),
    ] = None,
    methods: Methods = None,
    pair: Annotated[
        str | None,
        typer.Option(
            "--pair",
            metavar="TEACHER:STUDENT",
            help="The pair to tune on; default: tune.pair of the suite, or the first.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="The seed to tune with; default: tune.seed of the suite, or the first."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    overrides: Overrides = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="FILE", help="The suite of the chosen settings; default: SUITE-tuned.toml in --output."
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    debug: Debug = False,
) -> None:
    """Tune all methods of a suite with the same budget, on its validation split, and write the tuned suite.

    Every method, the baseline included, gets the same number of configurations. Run the same command to resume.
    """
    try:
        from kdbench.tune import tune_suite

        tuned = tune_suite(
            suite,
            trials=trials,
            methods=methods or (),
            pair=pair,
            seed=seed,
            overrides=overrides or (),
            plugins=plugins or (),
            device=device,
            output=output,
            write=write,
            tracking_uri=tracking_uri,
        )
    except KeyboardInterrupt as error:
        show_error("aborted; run the same command to resume from the last checkpoint")
        raise typer.Exit(exit_code_of(getattr(error, "signal", None))) from None
    if tuned.interrupted:
        show_error("interrupted; run the same command to resume from the last checkpoint")
        raise typer.Exit(exit_code_of(tuned.stopped_by))
    show(_table(tuned))
    failed = False
    for row in tuned.rows:
        for number, reason in row.without_result:
            show_error(f"{row.space.label}#{number:02d}: {_shown(row.configurations[number])}: {reason}")
            failed = failed or not reason.startswith("diverged")
    show(escape(f"configurations: {tuned.folder}"))
    files = "".join(f" -p {file}" for file in plugins or ())
    show(escape(f"tuned suite: {tuned.path}; train all its seeds with `kdbench run {_short(tuned.path)}{files}`"))
    raise typer.Exit(SOME_TRIAL_FAILED if failed else OK)


def _table(tuned: Tuned) -> Table:
    title = (
        f"tuned on {tuned.pair}, seed {tuned.seed}: {plural(tuned.trials, 'configuration')} of each method, chosen by "
        "validation accuracy"
    )
    table = Table(title=escape(title), title_justify="left")
    for column in ("method", "default, %", "best, %", "chosen settings", "configurations"):
        table.add_column(column, overflow="fold")
    for row in tuned.rows:
        table.add_row(*map(escape, _cells(row)))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    chosen = "default" if row.chosen == 0 else _shown(row.chosen_settings)
    lost = f" ({len(row.without_result)} without a result)" if row.without_result else ""
    return (
        row.space.label,
        _percent(row.default_top1),
        _percent(row.chosen_top1),
        row.space.note or chosen,
        f"{len(row.results)}{lost}",
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items()) or "default"


def _short(path: Path | None) -> str:
    """The path from the working folder, where it is below."""
    path = path or Path()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
