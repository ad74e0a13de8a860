"""The protocol in sentences: what the numbers of the report mean, and what they do not show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pandas as pd

from kdbench.recipe import Recipe
from kdbench.report import stats, tuning, wording
from kdbench.report.study import Study
from kdbench.results import TeacherRecord
from kdbench.results.reproduction import run_command
from kdbench.status import FINISHED, Status
from kdbench.suite.plan import unexpected

STATES = {
    Status.DIVERGED: "The loss became NaN or infinite. This is a result: the trial is not rerun and ranks last.",
    Status.FAILED: "An error ended the trial. The next run retries it.",
    Status.STALE: "Not comparable with the trials shown. The next run replaces it.",
    Status.SKIPPED: "The method does not support this pair.",
    Status.PENDING: "Not trained yet.",
}
ENVIRONMENT = ("device", "precision", "kdbench", "torch", "python", "platform", "git_commit")


def paragraphs(study: Study) -> list[str]:
    """What a reader must know to interpret the tables."""
    recipes = [_recipe(study)]
    selection = recipes[0].get("selection", "last")
    text = [
        _headline(str(selection)),
        "Mean ± sample standard deviation (divisor n − 1) over n seeds. A seed sets the student's initial weights, the "
        "order of the data and the augmentation. All methods of a pair use the same seeds.",
        "A gain is the mean difference between two methods at the same seeds. The intervals of a pair's gains over a "
        f"baseline hold at once: with {stats.CONFIDENCE:.0%}, every one of them contains its true gain (Dunnett; the "
        "noise is estimated from all methods of the pair together). A gain whose interval contains 0 is not resolved: "
        "these seeds do not determine its sign, and every value in the interval is compatible with them. Not resolved "
        "does not mean equal.",
        f"Methods that may equally be the best: with {stats.CONFIDENCE:.0%}, the truly best method is among them and "
        "the one with the highest mean (Hsu's comparisons with the best). The highest mean of several is partly luck, "
        "and its gain is on average smaller in a repetition.",
        "Ranks compare means over the same seeds. A method with missing results on a pair is incomplete and not ranked "
        "there. If fewer than two methods are complete, the methods with the most common seeds are ranked, and their "
        "ranks, gains and differences use only these seeds.",
        _teachers_of_seeds(study),
    ]
    if len(study.pairs) > 1:
        text.append(
            "Each pair has the same weight in means over pairs. Intervals over pairs, of gains and of mean ranks, need "
            f"at least {stats.PAIRS_FOR_INTERVAL} pairs. They are for one mean each, and account for the fact that "
            "pairs of one teacher are not independent (CR2 with Bell and McCaffrey's degrees of freedom). Words about "
            "all pairs are corrected for the number of comparisons (Holm). Methods are ranked by their means within "
            "each pair, and ranks are averaged over pairs. A method is ranked if it has all results on each compared "
            "pair; a pair that most methods lack is excluded."
        )
    text.append(
        "Diverged trials are excluded from means but counted. A method with a diverged trial ranks after all methods "
        "without one. Missing, skipped and failed trials are shown as such and never imputed."
    )
    extra = study.cells[study.cells["extra_epochs"].fillna(0) > 0]
    if len(extra):
        epochs = {row.label: int(row.extra_epochs) for row in extra.itertuples()}
        named = wording.listing([f"{label} ({count})" for label, count in epochs.items()])
        text.append(
            f"Methods with stages before the main one (epochs in brackets): {named}. If such a stage trains the "
            "student, as in AB, the student is trained longer than the others. Training times include these stages."
        )
    return [*text, tuning.sentence(study), *_data(study), *_precision(study)]


def _teachers_of_seeds(study: Study) -> str:
    varied = [study.has_a_teacher_for_each_seed(pair) for pair in study.pairs]
    if varied and all(varied):
        return (
            "Each seed has its own trained teacher, from which all methods learn. Intervals therefore hold for a "
            "repetition with other teachers and seeds, on this test set."
        )
    one = "One trained teacher" if not any(varied) else "On some pairs, one trained teacher"
    return (
        f"{one} is used for all methods and seeds. Intervals hold for this teacher and test set; a repetition with "
        "another teacher can fall outside them."
    )


def _headline(selection: str) -> str:
    if selection == "validation":
        return (
            "Top-1 is test accuracy in percent at the epoch with the best accuracy on a validation split of the "
            "training images. Where the best epoch on the test set is shown, it is labelled."
        )
    return (
        "Top-1 is test accuracy in percent after the last epoch. Where the best epoch on the test set is shown, it is "
        "labelled: choosing the epoch on the test set biases accuracy upwards."
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
        text.append(f"Only part of the data set {data.get('name', '')} was used: {wording.listing(limits)}.")
    validation = data.get("validation") or 0
    if validation:
        share = f"{validation:.0%}" if validation < 1 else wording.count(validation)
        text.append(f"A validation split of {share} of the training images was held out from training.")
    corrupt = study.trials["corrupt"].dropna()
    if len(corrupt) and corrupt.max() > 0:
        text.append(f"Excluded because they cannot be decoded: {wording.plural(int(corrupt.max()), 'image')}.")
    prints = set(study.trials.loc[study.trials["status"] == Status.DONE, "data_fingerprint"]) - {""}
    if len(prints) > 1:
        text.append(
            f"Warning: the trials used {len(prints)} different versions of the data "
            f"({wording.listing(sorted(value[:8] for value in prints))})."
        )
    return text


def _precision(study: Study) -> list[str]:
    """A warning if students of one pair were trained in different precisions, for example on a CPU and a GPU."""
    done = study.trials[study.trials["status"] == Status.DONE]
    mixed = [
        f"{study.title(str(pair))} ({wording.listing(sorted(found))})"
        for pair, group in done.groupby("pair", sort=False)
        if len(found := set(group["precision"]) - {""}) > 1
    ]
    return [f"Warning: students of one pair were trained in different precisions: {'; '.join(mixed)}."] if mixed else []


def _recipe(study: Study) -> Mapping[str, Any]:
    recipe = study.suite.get("recipe", {})
    return recipe if isinstance(recipe, Mapping) else {}


def recipe_rows(study: Study) -> list[tuple[str, str]]:
    """The recipe and its overrides per pair, as (key, value)."""
    rows = []
    for key, value in _recipe(study).items():
        if value in (None, [], 0.0, False) and key not in {"momentum", "weight_decay"}:
            continue
        rows.append((key.replace("_", " "), _value(value)))
    for pair in study.suite.get("pairs", []):
        name = f"{pair['teacher']}:{pair['student']}"
        if pair.get("recipe") and name in study.pairs:
            rows.append((f"for {study.title(name)}", _value(pair["recipe"])))
    return [*rows, *tuning.factors(study)]


def teacher_warnings(study: Study) -> list[str]:
    """Teachers whose accuracy differs from what the suite expects now (not when they were trained)."""
    expectations = study.suite.get("teachers", {})
    found = []
    for plan in study.plan.teachers:
        name, result = plan.name, study.folder.teacher(plan.key).recorded
        top1 = result.top1 if result else None
        if top1 is not None and name in expectations and name in set(study.trials["teacher"]):
            expected = expectations[name]
            shown = study.plan.shown_teacher(plan)
            found.append(unexpected(shown, top1, expected.get("expected_top1"), expected.get("tolerance", 1.0)))
    return [f"{text}." for text in found if text]


def teacher_recipe(study: Study, made: TeacherRecord | None) -> str:
    """How a teacher was trained: weights from a file, or the differences to the students' recipe."""
    if made is None or (made.weights is None and made.recipe is None):
        return wording.DASH
    recipe = made.recipe
    if recipe is None:
        return f"weights from {made.weights}"
    students = _recipe(study)
    with suppress(ValueError):  # from a version with other keys: compare the raw values
        # The record of the teacher has its drops in whole epochs.
        students = Recipe.model_validate(students).resolved().model_dump(mode="json")
    different = {key: value for key, value in recipe.items() if key in students and value != students[key]}
    return _value(different) or "same as the students"


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
    """The settings of each method with defaults; one row per variant if they differ between pairs."""
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
    """How to reproduce results that no command can reproduce; empty if :func:`command` gives a command."""
    classes = study.plan.classes
    given = ["the suite"] if study.plan.path is None else []
    given += [f"the class {name}" for name in classes]
    if not given:
        return ""
    text = wording.listing(given)
    verb = "was" if len(given) == 1 else "were"
    return (
        f"{text[:1].upper()}{text[1:]} {verb} passed from Python to kdbench.run_suite. Repeat the call to reproduce "
        "these results. The results folder contains the suite (plan.json) and the code of the methods (source/ of each "
        "trial)."
    )


def command(study: Study) -> str:
    """The command that reproduces these results; empty if there is none, see :func:`from_python`."""
    if from_python(study):
        return ""
    filters = study.filters
    return run_command(study.plan, study.name, methods=filters.methods, pairs=filters.pairs, seeds=filters.seeds)


def environments(study: Study) -> list[dict[str, Any]]:
    """Each environment in which trials were trained, the most frequent first."""
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
    """The conditions of our results, for comparison with published ones."""
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


def summary(study: Study) -> list[str]:
    """The study in one line."""
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
