"""The application: entry point, exit codes and error handling."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

import kdbench
from kdbench.cli.output import drop_output, prepare_streams, show_error
from kdbench.errors import KdbenchError

OK, SOME_TRIAL_FAILED, USAGE = 0, 1, 2
SOME_CHECK_FAILED = 1

app = typer.Typer(
    name="kdbench",
    help="Benchmark knowledge distillation losses: the same teachers, batches and seeds for all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
mlflow_app = typer.Typer(help="Copy results to MLflow.", no_args_is_help=True)
app.add_typer(mlflow_app, name="mlflow")


def main() -> None:
    """Run the command line and exit with 0 (done), 1 (a trial failed), 2 (wrong usage or suite) or 128 + a signal."""
    debug = "--debug" in sys.argv
    prepare_streams()
    try:
        code = app(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = exit_code_of(None)
    except KdbenchError as error:
        if debug:
            raise
        show_error(str(error))
        code = USAGE
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # which click, or rich, has noticed first
            drop_output()
            code = OK
        else:
            show_error(f"internal error: sys.exit({error.code!r}) was called")
            code = SOME_TRIAL_FAILED
    except BrokenPipeError:
        drop_output()
        code = OK
    except Exception as error:
        if debug:
            raise
        usage = getattr(error, "format_message", None)
        if usage is not None:
            # Without a subcommand, typer has printed the help, and has nothing to add.
            if said := usage():
                show_error(f"{said}; see kdbench --help")
            code = getattr(error, "exit_code", USAGE)
        else:
            show_error(f"internal error: {type(error).__name__}: {error}; use --debug for the traceback")
            code = SOME_TRIAL_FAILED
    sys.exit(code)


def exit_code_of(number: int | None) -> int:
    """The exit code of a process that a signal stopped, as shells have it: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + (signal.SIGINT if number is None else number)


def _version(value: bool) -> None:
    if value:
        print(f"kdbench {kdbench.__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
