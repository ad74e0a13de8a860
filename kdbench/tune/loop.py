"""Tuning from the first question to the suite of the chosen settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.claims import claiming_all, listed
from kdbench.discovery import Local
from kdbench.discovery import settings as settings_of
from kdbench.errors import KdbenchError, ResultsError, SuiteError
from kdbench.opening import Opened, open_suite
from kdbench.results import MAIN, SuiteFolder
from kdbench.results.files import write_text
from kdbench.run import Results, run_suite
from kdbench.status import Status
from kdbench.suite.filters import Filters
from kdbench.suite.load import pair_recipe
from kdbench.suite.plan import content_hash
from kdbench.suite.schema import Pair, Tuning
from kdbench.suite.tables import MAX_ENTRIES
from kdbench.tune.derived import entry, suite_of_configurations, tuned_suite
from kdbench.tune.outcome import Row, Tuned
from kdbench.tune.space import FACTOR, Space, spaces
from kdbench.tune.studies import MethodStudy, Studies, check_installed

BATCH = 4
"""Configurations of a method that are trained together. A constant: the results of a batch guide the next one."""
SUFFIX = "-tune"


def tune_suite(
    suite: str | Path | Mapping[str, Any],
    *,
    trials: int | None = None,
    methods: Sequence[str] = (),
    pair: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Local] = (),
    device: str = "auto",
    output: str | Path = "runs",
    write: str | Path | None = None,
    tracking_uri: str | None = None,
    observers: Sequence[object] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Tuned:
    """Train ``trials`` configurations of each method, and write a suite with the best ones.

    A configuration is trained with the recipe of the suite on one pair (by default ``[tune]``'s, or the first) and
    with one seed (likewise), and judged by its accuracy on the validation split, after the epoch that the recipe
    selects. The test set decides nothing. The first configuration has the settings of the suite. Results are those of
    a suite NAME-tune in ``output``, which also holds Optuna's journal: the same call continues what was interrupted.
    ``write`` is the file for the chosen settings; by default ``output/NAME-tuned.toml``.

    Raises:
        KdbenchError: the suite cannot be tuned, or Optuna is missing.
    """
    check_installed()
    output = Path(output).absolute()
    opened = open_suite(suite, overrides=overrides, plugins=plugins)
    chosen_pair, chosen_seed, budget = _checked(opened, trials, methods, pair, seed)
    found = spaces(opened, chosen_pair, chosen_seed, methods)
    name = f"{opened.suite.name}{SUFFIX}"
    folder = SuiteFolder(output, name)
    if sum(space.configurations(budget) for space in found) > MAX_ENTRIES:
        raise KdbenchError(
            f"{budget} configurations of {len(found)} methods are more than {MAX_ENTRIES:,}; tune fewer methods (-m)"
        )
    selection = pair_recipe(opened.suite, chosen_pair.recipe).selection
    with claiming_all(output, [("tune", name)]):
        studies = Studies(folder.path / "tune.journal")
        asked = {space.label: studies.of(space, selection) for space in found}
        for end in range(BATCH, budget + BATCH, BATCH):
            wanted = {space.label: space.configurations(min(end, budget)) for space in found}
            told = all(asked[label].is_told(number) for label, count in wanted.items() for number in range(count))
            if told:
                continue
            configurations = {
                label: [asked[label].configuration(number) for number in range(count)]
                for label, count in wanted.items()
            }
            entries, labels = _entries(opened, found, configurations)
            tables = suite_of_configurations(opened, name, chosen_pair, chosen_seed, entries)
            results = run_suite(
                tables,
                plugins=plugins,
                device=device,
                output=output,
                tracking_uri=tracking_uri,
                observers=observers,
                warn=warn,
                with_report=False,
            )
            if not results.interrupted:
                _tell(results, asked, labels, selection)
            if results.interrupted or results.stopped_by is not None:
                # Also where the signal came in the last epoch of a batch, which is then finished.
                stopped = Tuned(_rows(found, asked, budget), chosen_pair.name, chosen_seed, budget, folder.path)
                return replace(stopped, interrupted=True, stopped_by=results.stopped_by)
        rows = _rows(found, asked, budget)
    tuning = Tuning(
        pair=chosen_pair.name,
        seed=chosen_seed,
        trials=budget,
        methods={row.space.label: row.record() for row in rows},
    )
    path = Path(write).absolute() if write is not None else output / f"{opened.report_name}-tuned.toml"
    write_text(path, tuned_suite(opened, rows, tuning, path))
    return Tuned(rows, chosen_pair.name, chosen_seed, budget, folder.path, path)


def _checked(
    opened: Opened, trials: int | None, methods: Sequence[str], pair: str | None, seed: int | None
) -> tuple[Pair, int, int]:
    """The pair, the seed and the budget. Raises ``SuiteError`` where the suite cannot be tuned with these."""
    suite, tune = opened.suite, opened.suite.tune
    Filters(tuple(methods), () if pair is None else (pair,), () if seed is None else (seed,)).check(suite)
    if not suite.data.validation:
        raise SuiteError(
            [
                f"{opened.tables.where(('data', 'validation'))}: tuning needs images to choose by, held out from the "
                "training set: set it, as in validation = 0.1"
            ]
        )
    if trials is not None and trials < 1:
        raise SuiteError([f"--trials: must be at least 1, got {trials}"])
    wanted = pair or tune.pair or suite.pairs[0].name
    chosen = next(one for one in suite.pairs if one.name == wanted)
    if seed is None:
        seed = tune.seed if tune.seed is not None else suite.seeds[0]
    return chosen, seed, trials if trials is not None else tune.trials


def _entries(
    opened: Opened, found: Sequence[Space], configurations: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], str]]:
    """``[[methods]]`` of the configurations, and the label of each: equal configurations are one trial."""
    entries: dict[str, dict[str, Any]] = {}
    labels = {}
    for space in found:
        offer = opened.registry.method(space.trial.method)
        for number, configuration in enumerate(configurations[space.label]):
            row = entry(space, number, configuration)
            given = {key: value for key, value in row.items() if key not in {"name", "label", FACTOR}}
            settings = settings_of.resolve(offer.load(), {**offer.spec.presets, **given})[0]
            key = content_hash({"method": row["name"], "settings": settings, FACTOR: row[FACTOR]})
            labels[space.label, number] = entries.setdefault(key, row)["label"]
    return list(entries.values()), labels


def _tell(
    results: Results, asked: Mapping[str, MethodStudy], labels: Mapping[tuple[str, int], str], selection: str
) -> None:
    trials = {trial.label: trial for trial in results.plan.trials}
    if results.elsewhere:
        raise ResultsError(
            f"{results.folder.path}: configurations are in training by {listed(results.elsewhere)}; run again when "
            "they are done"
        )
    waiting = [trials[label] for label in labels.values() if trials[label].status in {Status.PENDING, Status.STALE}]
    if waiting:
        raise ResultsError(f"{results.folder.path}: {waiting[0].id} was not trained: {waiting[0].reason}; run again")
    for (method, number), label in labels.items():
        trial, study = trials[label], asked[method]
        if study.is_told(number):
            continue
        place = results.folder.trial(trial.id)
        value = None
        if trial.status is Status.DONE and (result := place.result) is not None:
            last = next(epoch for epoch in reversed(place.epochs) if epoch.stage == MAIN)
            value = (last if selection == "last" else result).validation_top1
        reason = "" if value is not None else f"{trial.status}: {trial.reason}".removesuffix(": ")
        study.tell(number, value, reason, diverged=trial.status is Status.DIVERGED)


def _rows(found: Sequence[Space], asked: Mapping[str, MethodStudy], budget: int) -> list[Row]:
    rows = []
    for space in found:
        study = asked[space.label]
        results = study.results(space.configurations(budget))
        rows.append(Row(space, [study.configuration(number) for number in range(len(results))], results))
    return rows
