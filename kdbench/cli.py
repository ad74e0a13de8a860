"""The command line: parse, call, print. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import kdbench
from kdbench.errors import KdbenchError, PluginError, did_you_mean

if TYPE_CHECKING:
    from kdbench.plugins import Offer, Registry
    from kdbench.suite.plan import Plan, Trial

OK, SOME_TRIAL_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
SOME_CHECK_FAILED = 1

app = typer.Typer(
    name="kdbench",
    help="A benchmark for knowledge distillation: bring a loss, compare it believably.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
mlflow_app = typer.Typer(help="Keep MLflow in step with the results.", no_args_is_help=True)
app.add_typer(mlflow_app, name="mlflow")

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
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Where results go.")]
ReportDir = Annotated[Path, typer.Option("--report-dir", metavar="DIR", help="Where reports go.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", metavar="URI", help="MLflow's store; sqlite:///mlflow.db unless named; 'none' for none."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

RUNS, REPORTS = Path("runs"), Path("reports")


def main() -> None:
    """Run the command line and exit with 0 (done), 1 (a trial failed), 2 (wrong usage or suite) or 130."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _error("left at once; the same command goes on from the last checkpoint")
        code = INTERRUPTED
    except KdbenchError as error:
        if debug:
            raise
        _error(str(error))
        code = USAGE
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # which click, or rich, has noticed first
            _drop_output()
            code = OK
        else:
            _error(f"internal error: something called sys.exit({error.code!r})")
            code = SOME_TRIAL_FAILED
    except BrokenPipeError:
        _drop_output()
        code = OK
    except Exception as error:
        if debug:
            raise
        usage = getattr(error, "format_message", None)
        if usage is not None:
            _error(f"{usage()}; see kdbench --help")
            code = getattr(error, "exit_code", USAGE)
        else:
            _error(f"internal error: {type(error).__name__}: {error}; --debug shows where")
            code = SOME_TRIAL_FAILED
    sys.exit(code)


def _drop_output() -> None:
    # The reader (head, less) has seen enough; Python must not complain when it closes the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _error(message: str) -> None:
    for line in message.splitlines():
        _stderr().print(f"[bold red]kdbench:[/] {escape(line)}", highlight=False, soft_wrap=True)


def _warn(message: str) -> None:
    _stderr().print(f"[yellow]kdbench:[/] {escape(message)}", highlight=False, soft_wrap=True)


def _stderr() -> Console:
    return Console(stderr=True, emoji=False)  # names such as a:b:c are none


def _print(thing: Any) -> None:
    # In a pipe there is no width to fit into: nothing must be cut off.
    console = Console(emoji=False, width=None if sys.stdout.isatty() else 200)
    console.print(thing, highlight=False)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, default=_plain))  # noqa: T201


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


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


@app.command()
def run(
    suite: SuiteArgument,
    methods: Methods = None,
    pairs: Pairs = None,
    seeds: Seeds = None,
    device: Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    overrides: Overrides = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    report_dir: ReportDir = REPORTS,
    tracking_uri: TrackingUri = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore earlier results of these trials.")] = False,
    allow_teacher_mismatch: Annotated[
        bool, typer.Option("--allow-teacher-mismatch", help="Go on where a teacher is not as good as expected.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train what is missing of a suite, log it, and write its report."""
    from kdbench.run import run_suite

    results = run_suite(
        suite,
        methods=methods or (),
        pairs=pairs or (),
        seeds=seeds or (),
        device=device,
        overrides=overrides or (),
        plugins=plugins or (),
        output=output,
        report_dir=report_dir,
        tracking_uri=tracking_uri,
        fresh=fresh,
        allow_teacher_mismatch=allow_teacher_mismatch,
    )
    if results.interrupted:
        _error("interrupted; every trial is saved, and the same command goes on from here")
        raise typer.Exit(INTERRUPTED)
    failed = results.missing
    for trial in failed:
        _error(f"{trial.id}: {trial.status}: {trial.reason}")
    if failed:
        _error(f"{len(failed)} trial(s) failed; see error.json in {results.folder.path}; the next run tries again")
    leaderboard = results.report / "leaderboard.md"
    if leaderboard.is_file():
        _print(f"report: {results.report / 'index.html'}")
    raise typer.Exit(SOME_TRIAL_FAILED if failed else OK)


@app.command()
def plan(
    suite: SuiteArgument,
    methods: Methods = None,
    pairs: Pairs = None,
    seeds: Seeds = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the trials of a suite: what is done, what is to do, what will be skipped and why."""
    from kdbench.resolve import Filters, with_results
    from kdbench.results import SuiteFolder
    from kdbench.run import open_suite

    opened = open_suite(suite, overrides=overrides or (), plugins=plugins or ())
    filters = Filters(methods or (), pairs or (), seeds or ())
    filters.check(opened.suite)
    folder = SuiteFolder(output, opened.suite.name)
    folder.check_protocol()
    everything = with_results(opened.plan, folder)
    chosen = everything.with_trials(trial for trial in everything.trials if filters.match(trial))
    if as_json:
        _print_json(chosen.describe())
        return
    _print(_plan_table(chosen))
    for line in _plan_summary(chosen, everything, folder, opened.resolver.facts.n_train):
        _print(line)


def _plan_table(plan: Plan) -> Table:
    table = Table(title=f"{plan.suite.name}: {plan.suite.question}", title_justify="left")
    for column in ("teacher", "student", "method", "seeds", "state"):
        table.add_column(column, overflow="fold")
    rows: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in plan.trials:
        rows.setdefault((trial.teacher.name, trial.student, trial.label), []).append(trial)
    for (teacher, student, label), trials in rows.items():
        table.add_row(teacher, student, label, str(len(trials)), escape(_states(trials)))
    return table


def _states(trials: Sequence[Trial]) -> str:
    from kdbench.suite.plan import count

    states = count(trials)
    reasons = sorted({trial.reason for trial in trials if trial.reason})
    text = ", ".join(state if len(states) == 1 else f"{n} {state}" for state, n in states.items())
    return f"{text}: {'; '.join(reasons)}" if reasons else text


def _plan_summary(chosen: Plan, everything: Plan, folder: Any, n_train: int) -> Iterable[str]:
    from kdbench.suite.cost import hours, steps
    from kdbench.suite.plan import count

    states = ", ".join(f"{n} {state}" for state, n in count(chosen.trials).items())
    yield f"{len(chosen.trials)} trials ({states}) in {len(chosen.cohorts)} cohorts"
    for teacher in chosen.teachers:
        stands = folder.teacher(teacher.key).result
        how = f"measured {stands['top1']:.2f} %" if stands else "given weights" if teacher.weights else "to be trained"
        yield f"teacher {teacher.name}: {how}"
    waiting = [trial for trial in chosen.trials if trial.status in {"pending", "failed"}]
    if waiting:
        estimate = hours(waiting, everything.trials, folder)
        known = f"about {estimate[0]:.2g} hours by results on {estimate[1]}" if estimate else "hours unknown as yet"
        yield f"to do: {steps(waiting, n_train):,} steps of students, {known}"


@app.command()
def report(
    suite: SuiteArgument,
    methods: Methods = None,
    pairs: Pairs = None,
    seeds: Seeds = None,
    output: Output = RUNS,
    report_dir: ReportDir = REPORTS,
    debug: Debug = False,
) -> None:
    """Write the report of what stands in the results folder."""
    from kdbench.report.render import render
    from kdbench.results import SuiteFolder

    name = _suite_name(suite, output)
    folder = SuiteFolder(output, name)
    folder.check_protocol()
    target = render(folder, report_dir / name, methods=methods or (), pairs=pairs or (), seeds=seeds or ())
    _print(f"report: {target}")


def _suite_name(suite: str, output: Path) -> str:
    """The name of a suite file, of a shipped suite, or of a results folder."""
    from kdbench.suite.load import locate, read

    if (output / suite / "plan.json").is_file():
        return suite
    path = locate(suite)
    return str(read(path).get("name", path.stem))


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
        _print_json(rows)
    else:
        _print(_listing(kind, rows))
        if kind is Kind.MODELS:
            _print("and any model of torchvision or timm, as torchvision:NAME and timm:NAME")
    for broken in registry.broken if kind is not Kind.PLUGINS else ():
        _warn(f"plugin {broken}")


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
        _print_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "question", "cost"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row.values()))
    _print(table)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="A method, model or data set.")],
    plugins: Plugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Describe a method, model or data set: settings, paper, taps, adapters, stages, who provides it."""
    from kdbench.describe import describe_offer
    from kdbench.plugins import discover

    registry = discover(plugins or ())
    rows = [describe_offer(offer, registry) for offer in _named(registry, name)]
    if as_json:
        _print_json(rows[0] if len(rows) == 1 else rows)
        return
    for row in rows:
        _print(_description(row))


def _named(registry: Registry, name: str) -> list[Offer[Any]]:
    """Everything called ``name``: a method and a model may share one."""
    found: list[Offer[Any]] = []
    for kind in (registry.methods, registry.models, registry.datasets):
        offers: list[Offer[Any]] = list(kind)
        found += [o for o in offers if name in (o.spec.name, f"{o.provider.distribution}:{o.spec.name}")]
    if not found and ":" in name:
        found.append(registry.model(name))
    if not found:
        everything: list[Offer[Any]] = [*registry.methods, *registry.models, *registry.datasets]
        known = {o.spec.name for o in everything}
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
            f"{key} = {json.dumps(v['default'], default=_plain)}  ({v['type']})"
            if isinstance(v, dict) and "default" in v
            else f"{key}: {v}"
            for key, v in value.items()
        )
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="A method, a plugin file, or a distribution: all its methods.")],
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pair", metavar="TEACHER:STUDENT", help="Try these networks instead; may be repeated."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; may be repeated.")
    ] = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check that methods keep the contract: finite numbers, gradients where they belong, no waiting."""
    from kdbench.testing import examine, table
    from kdbench.testing.targets import find, parse_settings

    found = find(target, parse_settings(settings or ()), plugins or ())
    reports = []
    with _stderr().status("") as status:
        for examinee in found.examinees:
            status.update(f"checking {examinee.name}")
            reports.append(examine(examinee, found.registry, pairs or ()))
    passed = all(report.passed for report in reports)
    if as_json:
        methods = [report.to_json() for report in reports]
        _print_json({"target": target, "passed": passed, "methods": methods, "not_checked": dict(found.not_checked)})
    else:
        single = len(reports) == 1 and not found.not_checked
        for part in table.of_method(reports[0]) if single else table.of_methods(reports, found.not_checked):
            _print(part)
    raise typer.Exit(OK if passed else SOME_CHECK_FAILED)


@app.command()
def selftest(
    device: Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check this machine: golden vectors in float64 and a short training with every method, on one device."""
    from dataclasses import asdict

    from kdbench import selftest as room
    from kdbench.engine.device import choose_device, device_name
    from kdbench.observers.progress import ProgressObserver
    from kdbench.plugins import discover

    chosen = choose_device(device)
    golden = list(room.compare_golden(discover(), chosen))
    trained = room.train_shortened(device, [ProgressObserver(_stderr())], _warn)
    passed = room.passed(golden, trained)
    if as_json:
        vectors = [{**asdict(agreement), "passed": agreement.passed} for agreement in golden]
        students = [{**asdict(student), "passed": student.passed} for student in trained]
        _print_json({"device": device_name(chosen), "passed": passed, "golden": vectors, "trained": students})
    else:
        for part in room.tables(golden, trained, device_name(chosen)):
            _print(part)
    raise typer.Exit(OK if passed else SOME_CHECK_FAILED)


class Form(StrEnum):
    """The forms that ``kdbench export`` writes."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    ONNX = "onnx"


@app.command()
def export(
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL", help="A trial's id, as much of its beginning as is unique, or its folder.")
    ],
    to: Annotated[Form, typer.Option("--to", help="Weights for safetensors or torch.load, or an ONNX program.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The file, or its folder; named by the trial otherwise."),
    ] = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    debug: Debug = False,
) -> None:
    """Write a trained student without its adapters, ready to use, with a model card beside it."""
    from kdbench.export import export_trial

    written = export_trial(trial, to.value, out, output=output, plugins=plugins or (), warn=_warn)
    _print(f"student: {written.file}")
    _print(f"model card: {written.card}")


@app.command("new-method")
def new_method(
    name: Annotated[str, typer.Argument(help="The method's name: lower-case letters, digits and dashes.")],
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Where to write it; kdbench-NAME unless named.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a distribution for a loss of your own: installable, tested, with a suite that compares it."""
    from kdbench.plugins import discover
    from kdbench.scaffold import check_name, create

    names = check_name(name, discover())
    target = directory or Path(names.distribution)
    for path in create(names, target):
        _print(f"wrote {path}")
    _print(f"next:  cd {target}  and follow README.md")


@mlflow_app.command()
def sync(
    suite: SuiteArgument,
    output: Output = RUNS,
    report_dir: ReportDir = REPORTS,
    tracking_uri: TrackingUri = None,
    debug: Debug = False,
) -> None:
    """Bring MLflow up to date with a results folder; may be repeated without harm."""
    from kdbench.observers.mlflow import sync as replay
    from kdbench.results import SuiteFolder

    name = _suite_name(suite, output)
    folder = SuiteFolder(output, name)
    folder.check_protocol()
    _print(str(replay(folder, name, tracking_uri, report_dir / name)))
