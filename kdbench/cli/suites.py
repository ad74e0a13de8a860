"""Commands on a suite: train it, plan it, report it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kdbench.claims import LEASE_SECONDS, Holder, listed, living, trials_of
from kdbench.cli.application import OK, SOME_TRIAL_FAILED, app, exit_code_of
from kdbench.cli.options import (
    REPORTS,
    RUNS,
    AsJson,
    Debug,
    Highlight,
    Methods,
    Output,
    Overrides,
    Pairs,
    Parts,
    Plugins,
    ReportDir,
    ReportName,
    Seeds,
    SuiteArgument,
    TrackingUri,
)
from kdbench.cli.output import show, show_error, show_json, show_warning
from kdbench.errors import ResultsError, SuiteError
from kdbench.words import plural, time_span

if TYPE_CHECKING:
    from kdbench.suite.plan import Cohort, Plan, TeacherPlan, Trial


@app.command()
def run(
    suite: SuiteArgument,
    methods: Methods = None,
    pairs: Pairs = None,
    seeds: Seeds = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="D", help="auto, cpu, cuda or cuda:N; several, separated by commas, get a worker each."
        ),
    ] = "auto",
    jobs: Annotated[
        str,
        typer.Option(
            "--jobs",
            "--jobs-per-device",
            metavar="N",
            help="Worker processes for each device; auto: as many as fit on a GPU.",
        ),
    ] = "1",
    executor: Annotated[
        str | None, typer.Option("--executor", metavar="NAME", help="Where workers are; see kdbench list executors.")
    ] = None,
    executor_settings: Annotated[
        list[str] | None,
        typer.Option("--executor-set", metavar="KEY=VALUE", help="A setting of the executor; may be repeated."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Train on a Ray cluster: auto, local, or HOST:PORT."),
    ] = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    report_dir: ReportDir = REPORTS,
    report_name: ReportName = None,
    highlight: Highlight = None,
    tracking_uri: TrackingUri = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train again, ignoring earlier results of these trials.")
    ] = False,
    allow_teacher_mismatch: Annotated[
        bool, typer.Option("--allow-teacher-mismatch", help="Continue if a teacher differs from its expected accuracy.")
    ] = False,
    grace: Annotated[
        float | None,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0,
            help="After a signal, wait at most this long for the end of the epoch; default: no limit.",
        ),
    ] = None,
    parts: Parts = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until no other process is training, to take over what dies.")
    ] = False,
    lease: Annotated[
        float,
        typer.Option(
            "--lease",
            metavar="SECONDS",
            help="Others take over what this process trains after so long without a sign of life.",
        ),
    ] = LEASE_SECONDS,
    debug: Debug = False,
) -> None:
    """Train the missing trials of a suite, log them, and write the report.

    Any number of processes may run the same suite in the same folder, on one machine or on several: each takes the
    next free cohort, and the last one writes the report.
    """
    try:
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
            report_name=report_name,
            highlight=highlight or (),
            tracking_uri=tracking_uri,
            fresh=fresh,
            allow_teacher_mismatch=allow_teacher_mismatch,
            grace=grace,
            jobs=_jobs(jobs),
            executor=_executor(executor, executor_settings or (), ray),
            parts=parts,
            wait=wait,
            lease=lease,
        )
    except KeyboardInterrupt as error:
        # Here, since Typer makes an exit of it that has lost its signal.
        show_error("aborted; run the same command to resume from the last checkpoint")
        raise typer.Exit(exit_code_of(getattr(error, "signal", None))) from None
    if results.interrupted:
        show_error("interrupted; run the same command to resume from the last checkpoint")
        raise typer.Exit(exit_code_of(results.stopped_by))
    failed = results.missing
    for trial in failed:
        show_error(f"{trial.id}: {trial.status}: {trial.reason}")
    if failed:
        show_error(
            f"{plural(len(failed), 'trial')} failed; see error.json in {results.folder.path}; run again to retry"
            if len(results.failed) == len(failed)
            else f"{plural(len(failed), 'trial')} without a result; run again"
        )
    if results.elsewhere:
        show(
            f"{plural(len(results.elsewhere), 'trial')} in training by {listed(results.elsewhere)}; the last process "
            "writes the report"
        )
    elif (results.report / "leaderboard.md").is_file():
        show(escape(f"report: {results.report / 'index.html'}"))
        if methods or pairs or seeds:
            show("it shows the selected trials; `kdbench report` without -m, --pair and --seed writes the full report")
    raise typer.Exit(SOME_TRIAL_FAILED if failed else OK)


def _jobs(given: str) -> int | str:
    try:
        return int(given)
    except ValueError:
        return given


def _executor(name: str | None, settings: Sequence[str], ray: str | None) -> dict[str, Any] | None:
    """The executor, with its settings; None for the usual one."""
    from kdbench.suite.tables import setting

    if name is None and ray is None:
        if settings:
            raise SuiteError(["--executor-set: needs --executor or --ray"])
        return None
    if name is not None and ray is not None and name != "ray":
        raise SuiteError([f"--ray and --executor {name}: choose one"])
    chosen: dict[str, Any] = {"name": "ray" if ray is not None else name}
    if ray is not None:
        chosen["address"] = ray
    return chosen | dict(setting(given, "--executor-set") for given in settings)


@app.command()
def plan(
    suite: SuiteArgument,
    methods: Methods = None,
    pairs: Pairs = None,
    seeds: Seeds = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    parts: Parts = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show which trials of a suite are done, pending or skipped, and why."""
    from kdbench.opening import open_suite
    from kdbench.results import SuiteFolder
    from kdbench.results.state import with_results
    from kdbench.results.why import explain
    from kdbench.suite.filters import Filters

    opened = open_suite(suite, overrides=overrides or (), plugins=plugins or ())
    filters = Filters(methods or (), pairs or (), seeds or ())
    filters.check(opened.suite)
    folder = SuiteFolder(output, opened.suite.name)
    folder.check_protocol()
    held = living(output, trials_of(opened.suite.name))
    everything = _with_holders(explain(with_results(opened.plan, folder), folder), held)
    for remark in opened.remarks:
        show_warning(remark)
    chosen = everything.with_trials(trial for trial in everything.trials if filters.match(trial))
    if as_json:
        show_json(chosen.describe())
        return
    show(_plan_table(chosen))
    for line in _plan_summary(chosen, everything, folder, opened.resolver.facts.n_train, parts):
        show(escape(line))


def _with_holders(plan: Plan, held: Mapping[str, Holder]) -> Plan:
    """The plan, with the process that trains a trial as its reason."""
    from kdbench.status import UNFINISHED

    return plan.with_trials(
        trial.with_status(trial.status, f"in training by {held[trial.id]}")
        if trial.id in held and trial.status in UNFINISHED
        else trial
        for trial in plan.trials
    )


def _plan_table(plan: Plan) -> Table:
    table = Table(title=escape(f"{plan.suite.name}: {plan.suite.question}"), title_justify="left")
    for column in ("teacher", "student", "method", "seeds", "state"):
        table.add_column(column, overflow="fold")
    rows: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in plan.trials:
        rows.setdefault((trial.teacher.name, trial.student, trial.label), []).append(trial)
    for (teacher, student, label), trials in rows.items():
        table.add_row(*map(escape, (teacher, student, label, str(len(trials)), _states(trials))))
    return table


def _states(trials: Sequence[Trial]) -> str:
    from kdbench.suite.plan import count

    states = count(trials)
    reasons = sorted({trial.reason for trial in trials if trial.reason})
    text = ", ".join(state if len(states) == 1 else f"{n} {state}" for state, n in states.items())
    return f"{text}: {'; '.join(reasons)}" if reasons else text


def _plan_summary(chosen: Plan, everything: Plan, folder: Any, n_train: int, parts: int | None) -> Iterable[str]:
    from kdbench.results.cost import hours, repeated_passes, steps, teacher_hours, teacher_steps, trained
    from kdbench.status import UNFINISHED
    from kdbench.suite.plan import count

    states = ", ".join(f"{n} {state}" for state, n in count(chosen.trials).items())
    yield f"{plural(len(chosen.trials), 'trial')} ({states}) in {plural(len(chosen.cohorts), 'cohort')}"
    unmeasured: dict[tuple[str, str], list[TeacherPlan]] = {}
    for teacher in chosen.teachers:
        result = folder.teacher(teacher.key).result
        if result is None or result.top1 is None:
            state = "given weights" if teacher.weights else "to be trained"
            unmeasured.setdefault((teacher.name, state), []).append(teacher)
            continue
        yield f"teacher {teacher.shown}: measured {result.top1:.2f} %"
        if message := teacher.mismatch(result.top1):
            yield f"warning: {message}"
    for (name, state), teachers in unmeasured.items():
        seeds = ", ".join(str(teacher.seed) for teacher in teachers)
        yield f"teacher {f'{name}, seeds {seeds}' if len(teachers) > 1 else teachers[0].shown}: {state}"
    waiting = [trial for trial in chosen.trials if trial.status in UNFINISHED]
    needed = {trial.teacher.key for trial in waiting}
    untrained = [one for group in unmeasured.values() for one in group if one.recipe and one.key in needed]
    if untrained:
        known = _estimated(teacher_hours(untrained, everything.teachers, folder))
        count_of_steps = plural(teacher_steps(untrained, n_train), "step")
        yield f"to do: {count_of_steps} of {plural(len(untrained), 'teacher')}, {known}"
    if waiting:
        training = trained(waiting, folder)
        known = _estimated(hours(training, everything.trials, folder))
        yield f"to do: {plural(steps(training, n_train), 'step')} of students, {known}"
        if adopting := len(waiting) - len(training):
            yield f"{plural(adopting, 'trial')} without training: equal to that of another teacher's student"
        if parts is not None and parts > 1:
            cohorts = [cohort for cohort in everything.cohorts if {trial.id for trial in waiting} & _ids(cohort)]
            passes, seconds = repeated_passes(cohorts, parts, n_train, folder)
            known = "time unknown" if seconds is None else f"about {time_span(seconds)} by earlier results"
            yield f"--parts {parts}: {plural(passes, 'step')} of teachers are repeated, {known}"


def _estimated(found: tuple[float, str] | None) -> str:
    return "time unknown" if found is None else f"about {time_span(found[0] * 3600)} by the results on {found[1]}"


def _ids(cohort: Cohort) -> set[str]:
    return {trial.id for trial in cohort.trials}


@app.command()
def report(
    suite: Annotated[
        str,
        typer.Argument(metavar="SUITE", help="A suite file, a shipped suite's name, or the name of a results folder."),
    ],
    methods: Methods = None,
    pairs: Pairs = None,
    seeds: Seeds = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
    output: Output = RUNS,
    report_dir: ReportDir = REPORTS,
    report_name: ReportName = None,
    highlight: Highlight = None,
    debug: Debug = False,
) -> None:
    """Write the report of the results so far that match the current suite file."""
    from kdbench.report import naming
    from kdbench.report.parts import parts_of
    from kdbench.report.render import render
    from kdbench.results import SuiteFolder
    from kdbench.suite.filters import Filters

    filters = Filters(tuple(methods or ()), tuple(pairs or ()), tuple(seeds or ()))
    plan, base, registry = None, suite, None
    if is_suite(suite) or not (output / suite / "plan.json").is_file():
        from kdbench.opening import open_suite

        opened = open_suite(suite, overrides=overrides or (), plugins=plugins or ())
        folder = SuiteFolder(output, opened.suite.name)
        if not folder.path.is_dir():
            raise ResultsError(
                f"{folder.path}: no results; train them with `kdbench run {suite}`, or set their folder with --output"
            )
        plan, base, registry = opened.record(), opened.report_name, opened.registry
    else:
        if overrides or plugins:
            raise SuiteError([f"{suite}: --set and --plugin need a suite file; this is the name of a results folder"])
        folder = SuiteFolder(output, suite)
        last = folder.plan
        base = (last and last.report) or suite
        planned = last.path if last else suite
        hint = f"from {planned}; to report its current content, pass the file" if planned else "from Python"
        show(escape(f"{folder.path}: as last planned {hint}"))
    folder.check_protocol()
    name = naming.one_folder(report_name) if report_name is not None else naming.report_name(base, (), filters)
    target = render(
        folder,
        report_dir / name,
        plan=plan,
        methods=filters.methods,
        pairs=filters.pairs,
        seeds=filters.seeds,
        highlight=tuple(highlight or ()),
        parts=parts_of(plan, registry) if plan is not None else None,
        warn=show_warning,
    )
    show(escape(f"report: {target}"))


def is_suite(suite: str) -> bool:
    """Whether ``suite`` is a file, or the name of a shipped suite."""
    from kdbench.suite.load import shipped

    return Path(suite).is_file() or suite in shipped()


def suite_name(suite: str, output: Path) -> str:
    """The name of a suite file, of a shipped suite, or of a results folder."""
    from kdbench.suite.load import locate, read

    if (output / suite / "plan.json").is_file():
        return suite
    path = locate(suite)
    return str(read(path).get("name", path.stem))
