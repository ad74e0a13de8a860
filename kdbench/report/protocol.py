"""The protocol in words: what a number of the report means, and what it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pandas as pd

from kdbench.recipe import Recipe
from kdbench.report import stats, wording
from kdbench.report.study import Study
from kdbench.results import TeacherRecord
from kdbench.results.reproduction import run_command
from kdbench.status import FINISHED, Status
from kdbench.suite.plan import unexpected

STATES = {
    Status.DIVERGED: "The loss became NaN or infinite. This is an outcome: it is not repeated, and ranks last.",
    Status.FAILED: "Something broke. The next run tries again.",
    Status.STALE: "Not comparable with the trials shown, and not mixed with them. The next run replaces it.",
    Status.SKIPPED: "The method cannot read this pair.",
    Status.PENDING: "Not trained yet.",
}
ENVIRONMENT = ("device", "precision", "kdbench", "torch", "python", "platform", "git_commit")


def paragraphs(study: Study) -> list[str]:
    """What a reader has to know to believe the tables."""
    recipes = [_recipe(study)]
    selection = recipes[0].get("selection", "last")
    text = [
        _headline(str(selection)),
        "Mean ± sample standard deviation (divisor n − 1) over n seeds; a seed decides the student's start, the order "
        "of the data and the augmentation, and is shared by all methods of a pair.",
        f"A gain is the mean over seeds of the difference between two methods at the same seed; in brackets its "
        f"{stats.CONFIDENCE:.0%} Student-t interval. A difference whose interval contains 0 is not resolved: these "
        "seeds do not decide its sign, and differences up to the interval's ends are compatible with these seeds. With "
        "few seeds intervals are wide. They are each for one comparison, not corrected for how many there are. "
        "Differences that are the same at every seed give no interval: on few test images that is a coincidence.",
        "Ranks compare means over the same seeds. A method without all of its results on a pair is incomplete and not "
        "ranked there. Where fewer than two methods are complete, those that share most seeds are ranked, and their "
        "ranks, gains and differences are over these seeds.",
        "One teacher was used per pair, the same for all methods and seeds. How much the ranking depends on which "
        "teacher it was, these numbers cannot say.",
    ]
    if len(study.pairs) > 1:
        text.append(
            f"Over pairs, each pair counts once. An interval over pair means is given from {stats.PAIRS_FOR_INTERVAL} "
            "pairs on. Ranks are those of the means within a pair, averaged over pairs. A method is ranked if it has "
            "all its results on each of the compared pairs; a pair that most methods lack is not compared. The "
            "intervals of mean ranks are percentile bootstraps over seeds, and over pairs too from "
            f"{stats.PAIRS_FOR_INTERVAL} pairs on."
        )
    text.append(
        "Means exclude diverged trials; these are counted, and a method with one ranks behind all without. Missing, "
        "skipped and failed trials are shown as such, and nothing is put in their place."
    )
    extra = study.cells[study.cells["extra_epochs"].fillna(0) > 0]
    if len(extra):
        epochs = {row.label: int(row.extra_epochs) for row in extra.itertuples()}
        named = wording.listing([f"{label} ({count})" for label, count in epochs.items()])
        text.append(
            f"Trained in stages before the main one (epochs in brackets): {named}. Where such a stage trains the "
            "student, as AB's does, the student is trained longer than the others. Seconds include it."
        )
    return [*text, *_data(study), *_precision(study)]


def _headline(selection: str) -> str:
    if selection == "validation":
        return (
            "Top-1 is test accuracy in percent at the epoch that is best on a validation split, which was cut from the "
            "training images. The best epoch on the test set, where shown, is labelled as such."
        )
    return (
        "Top-1 is test accuracy in percent after the last epoch. The best epoch on the test set, where shown, is "
        "labelled as such: choosing an epoch by the test set biases its accuracy upwards."
    )


def _data(study: Study) -> list[str]:
    data = study.suite.get("data", {})
    limits = [
        f"{wording.count(data[key])} {noun}"
        for key, noun in (("train_limit", "training images"), ("test_limit", "test images"))
        if data.get(key)
    ]
    text = []
    if limits:
        text.append(f"Only a part of the data set {data.get('name', '')} was used: {wording.listing(limits)}.")
    validation = data.get("validation") or 0
    if validation:
        share = f"{validation:.0%}" if validation < 1 else wording.count(validation)
        text.append(f"A validation split of {share} of the training images was held out from training.")
    corrupt = study.trials["corrupt"].dropna()
    if len(corrupt) and corrupt.max() > 0:
        text.append(f"{wording.plural(int(corrupt.max()), 'image')} could not be decoded and were left out.")
    prints = set(study.trials.loc[study.trials["status"] == Status.DONE, "data_fingerprint"]) - {""}
    if len(prints) > 1:
        text.append(
            f"Careful: the trials saw {len(prints)} different versions of the data "
            f"({wording.listing(sorted(value[:8] for value in prints))})."
        )
    return text


def _precision(study: Study) -> list[str]:
    """Where a pair's students were trained in different precisions, as by a CPU and a GPU."""
    done = study.trials[study.trials["status"] == Status.DONE]
    mixed = [
        f"{study.title(str(pair))} ({wording.listing(sorted(found))})"
        for pair, group in done.groupby("pair", sort=False)
        if len(found := set(group["precision"]) - {""}) > 1
    ]
    return [f"Careful: students of one pair were trained in different precisions: {'; '.join(mixed)}."] if mixed else []


def _recipe(study: Study) -> Mapping[str, Any]:
    recipe = study.suite.get("recipe", {})
    return recipe if isinstance(recipe, Mapping) else {}


def recipe_rows(study: Study) -> list[tuple[str, str]]:
    """The recipe, and what pairs change of it, as (key, value)."""
    rows = []
    for key, value in _recipe(study).items():
        if value in (None, [], 0.0, False) and key not in {"momentum", "weight_decay"}:
            continue
        rows.append((key.replace("_", " "), _value(value)))
    for pair in study.suite.get("pairs", []):
        name = f"{pair['teacher']}:{pair['student']}"
        if pair.get("recipe") and name in study.pairs:
            rows.append((f"for {study.title(name)}", _value(pair["recipe"])))
    return rows


def teacher_warnings(study: Study) -> list[str]:
    """Teachers that are not what the suite expects now, whatever it expected when they were trained."""
    expectations = study.suite.get("teachers", {})
    found = []
    for plan in study.plan.teachers:
        name, result = plan.name, study.folder.teacher(plan.key).recorded
        top1 = result.top1 if result else None
        if top1 is not None and name in expectations and name in set(study.trials["teacher"]):
            expected = expectations[name]
            found.append(unexpected(name, top1, expected.get("expected_top1"), expected.get("tolerance", 1.0)))
    return [f"{text}." for text in found if text]


def teacher_recipe(study: Study, made: TeacherRecord | None) -> str:
    """How a teacher was made: given weights, or what differs from the students' recipe."""
    if made is None or (made.weights is None and made.recipe is None):
        return wording.DASH
    recipe = made.recipe
    if recipe is None:
        return f"given weights: {made.weights}"
    students = _recipe(study)
    with suppress(ValueError):  # of a version with other keys: compared as it is written
        # The teacher's own record has its drops in whole epochs.
        students = Recipe.model_validate(students).resolved().model_dump(mode="json")
    different = {key: value for key, value in recipe.items() if key in students and value != students[key]}
    return _value(different) or "as the students'"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(
            " ".join([str(item["name"]), *(f"{k} {_value(v)}" for k, v in item.items() if k != "name")])
            if isinstance(item, Mapping) and "name" in item
            else _value(item)
            for item in value
        )
    return str(value)


def settings_rows(study: Study) -> list[dict[str, Any]]:
    """What each method was set to, defaults included, and for which pairs it was set otherwise."""
    rows: list[dict[str, Any]] = []
    known = study.trials[study.trials["settings"] != ""]
    for label, group in known.groupby("label", sort=False):
        variants = group.groupby("settings", sort=False)
        for settings, trials in variants:
            rows.append(
                {
                    "label": label,
                    "method": trials["method"].iloc[0],
                    "settings": _value(json.loads(str(settings))),
                    "pairs": ""
                    if len(variants) == 1
                    else wording.listing([study.title(str(pair)) for pair in dict.fromkeys(trials["pair"])]),
                    "plugin": f"{trials['plugin'].iloc[0]} {trials['plugin_version'].iloc[0]}".strip(),
                    "extra_epochs": int(trials["extra_epochs"].fillna(0).max()),
                }
            )
    order = {label: index for index, label in enumerate(study.labels)}
    return sorted(rows, key=lambda row: order[row["label"]])


def from_python(study: Study) -> str:
    """Why no command makes these results again; empty where :func:`command` does."""
    classes = study.plan.classes
    given = ["the suite"] if study.plan.path is None else []
    given += [f"the class {name}" for name in classes]
    if not given:
        return ""
    text = wording.listing(given)
    verb = "was" if len(given) == 1 else "were"
    return (
        f"{text[:1].upper()}{text[1:]} {verb} given from Python, to kdbench.run_suite: the same call makes these "
        "results again. The results folder keeps the suite in plan.json, and a method's code in source/ of each trial."
    )


def command(study: Study) -> str:
    """The command that makes these results again; empty where none does, see :func:`from_python`."""
    if from_python(study):
        return ""
    filters = study.filters
    return run_command(study.plan, study.name, methods=filters.methods, pairs=filters.pairs, seeds=filters.seeds)


def environments(study: Study) -> list[dict[str, Any]]:
    """Each environment in which trials were trained, the commonest first."""
    finished = study.trials[study.trials["status"].isin(FINISHED)]
    groups = finished.groupby(list(ENVIRONMENT), sort=False) if len(finished) else []
    rows = [
        {**dict(zip(ENVIRONMENT, values, strict=True)), "trials": len(group), "when": _period(group)}
        for values, group in groups
    ]
    return sorted(rows, key=lambda row: -int(row["trials"]))


def _period(trials: pd.DataFrame) -> str:
    days = sorted({str(stamp)[:10] for stamp in trials["finished"] if stamp})
    return "" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def ours(study: Study) -> str:
    """What to know of our own figures before setting them beside others'."""
    recipe, data = _recipe(study), study.suite.get("data", {})
    epoch = "the epoch best on a validation split" if recipe.get("selection") == "validation" else "last epoch"
    text = f"Ours: {epoch}"
    if recipe.get("epochs"):
        text += f", {wording.plural(recipe['epochs'], 'epoch')} at batch size {recipe.get('batch_size', wording.DASH)}"
    if data.get("train_limit"):
        text += f", trained on {wording.count(data['train_limit'])} images only"
    if data.get("test_limit"):
        text += f", tested on {wording.count(data['test_limit'])} images only"
    return text + "."


def facts(study: Study) -> list[str]:
    """The study in a line."""
    trials = study.trials
    runnable = trials[trials["status"] != Status.SKIPPED]
    finished = int(runnable["status"].isin(FINISHED).sum())
    seeds = len(set(trials["seed"]))
    return [
        *([f"data set {study.data}"] if study.data else []),
        wording.plural(len(study.pairs), "pair"),
        wording.plural(len(study.labels), "method"),
        wording.plural(seeds, "seed"),
        f"{finished} of {wording.plural(len(runnable), 'trial')} finished",
    ]
