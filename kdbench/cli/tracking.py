"""Commands on MLflow."""

from __future__ import annotations

from kdbench.cli.application import mlflow_app
from kdbench.cli.options import REPORTS, RUNS, Debug, Output, ReportDir, SuiteArgument, TrackingUri
from kdbench.cli.output import show
from kdbench.cli.suites import suite_name


@mlflow_app.command()
def sync(
    suite: SuiteArgument,
    output: Output = RUNS,
    report_dir: ReportDir = REPORTS,
    tracking_uri: TrackingUri = None,
    debug: Debug = False,
) -> None:
    """Copy missing results to MLflow; safe to repeat."""
    from kdbench.observers.mlflow import sync as replay
    from kdbench.results import SuiteFolder

    name = suite_name(suite, output)
    folder = SuiteFolder(output, name)
    folder.check_protocol()
    plan = folder.plan
    show(str(replay(folder, name, tracking_uri, report_dir / ((plan and plan.report) or name))))
