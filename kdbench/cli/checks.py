"""Commands that check plugins, and that test this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbench.cli.application import OK, SOME_CHECK_FAILED, app
from kdbench.cli.options import AsJson, Debug, Plugins
from kdbench.cli.output import show, show_json, show_warning, stderr


@app.command()
def check(
    target: Annotated[
        str, typer.Argument(help="A method, a model, a plugin file or a package (everything it offers).")
    ],
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pair", metavar="TEACHER:STUDENT", help="Check a method on this pair; may be repeated."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the method; may be repeated."),
    ] = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check methods and models: finite numbers, gradients, declared taps and signs."""
    from kdbench.errors import KdbenchError
    from kdbench.testing import examine, examine_model, table
    from kdbench.testing.targets import find, parse_settings

    found = find(target, parse_settings(settings or ()), plugins or ())
    if pairs and not found.examinees:
        raise KdbenchError(f"--pair {pairs[0]}: '{target}' is a model; --pair is for methods only")
    reports = []
    with stderr().status("") as status:
        for examinee in found.examinees:
            status.update(f"checking {examinee.name}")
            reports.append(examine(examinee, found.registry, pairs or ()))
        for offer in found.models:
            status.update(f"checking {offer.spec.name}")
            reports.append(examine_model(offer))
    passed = all(report.passed for report in reports)
    if as_json:
        show_json(
            {
                "target": target,
                "passed": passed,
                "methods": [report.to_json() for report in reports if report.kind == "method"],
                "models": [report.to_json() for report in reports if report.kind == "model"],
                "not_checked": dict(found.not_checked),
            }
        )
    else:
        single = len(reports) == 1 and not found.not_checked
        for part in table.of_one(reports[0]) if single else table.of_several(reports, found.not_checked):
            show(part)
    raise typer.Exit(OK if passed else SOME_CHECK_FAILED)


@app.command()
def selftest(
    device: Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Test this machine: golden vectors in float64 and a short training with every method, on one device."""
    from dataclasses import asdict

    from kdbench import selftest as tests
    from kdbench.discovery import discover
    from kdbench.engine.device import choose_device, device_name
    from kdbench.observers.progress import ProgressObserver

    chosen = choose_device(device)
    golden = list(tests.compare_golden(discover(), chosen))
    trained = tests.train_shortened(device, [ProgressObserver(stderr())], show_warning)
    passed = tests.passed(golden, trained)
    if as_json:
        vectors = [{**asdict(agreement), "passed": agreement.passed} for agreement in golden]
        students = [{**asdict(student), "passed": student.passed} for student in trained]
        show_json({"device": device_name(chosen), "passed": passed, "golden": vectors, "trained": students})
    else:
        for part in tests.tables(golden, trained, device_name(chosen)):
            show(part)
    raise typer.Exit(OK if passed else SOME_CHECK_FAILED)
