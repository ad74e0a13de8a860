"""Commands that test: a plugin against its contract, this machine against golden vectors."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbench.cli.application import OK, SOME_CHECK_FAILED, app
from kdbench.cli.options import AsJson, Debug, Plugins
from kdbench.cli.output import show, show_json, show_warning, stderr


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
    with stderr().status("") as status:
        for examinee in found.examinees:
            status.update(f"checking {examinee.name}")
            reports.append(examine(examinee, found.registry, pairs or ()))
    passed = all(report.passed for report in reports)
    if as_json:
        methods = [report.to_json() for report in reports]
        show_json({"target": target, "passed": passed, "methods": methods, "not_checked": dict(found.not_checked)})
    else:
        single = len(reports) == 1 and not found.not_checked
        for part in table.of_method(reports[0]) if single else table.of_methods(reports, found.not_checked):
            show(part)
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
    trained = room.train_shortened(device, [ProgressObserver(stderr())], show_warning)
    passed = room.passed(golden, trained)
    if as_json:
        vectors = [{**asdict(agreement), "passed": agreement.passed} for agreement in golden]
        students = [{**asdict(student), "passed": student.passed} for student in trained]
        show_json({"device": device_name(chosen), "passed": passed, "golden": vectors, "trained": students})
    else:
        for part in room.tables(golden, trained, device_name(chosen)):
            show(part)
    raise typer.Exit(OK if passed else SOME_CHECK_FAILED)
