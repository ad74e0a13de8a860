"""Read a suite file; report every problem at once, each as ``file: key.path: what is wrong``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from kdbench.discovery.settings import as_json, explain
from kdbench.errors import SuiteError, did_you_mean, nearest
from kdbench.hookspecs import AugmentationSpec, OptimizerSpec, ScheduleSpec, Spec
from kdbench.recipe import OWN_KEYS, Recipe
from kdbench.search import Search
from kdbench.suite import schema
from kdbench.suite.schema import Suite
from kdbench.suite.tables import (
    Location,
    Tables,
    locate,
    plugin_files,
    read,
    report_name,
    rows,
    shipped,
    table,
)
from kdbench.words import shown

__all__ = ["Catalogue", "load", "locate", "pair_recipe", "plugin_files", "read", "report_name", "shipped"]

MAX_PROBLEMS = 50
"""The maximum number of reported problems."""

Problem = tuple[Location, str]
"""Where something is wrong, and what."""


class Catalogue(Protocol):
    """What :func:`load` asks about names and settings; each answer is a list of (key, what is wrong)."""

    def method_problems(self, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of a method's name (key '') or settings."""

    def model_problems(self, name: str) -> list[tuple[str, str]]:
        """Problems of a model's name."""

    def data_problems(self, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of a data set's name or settings."""

    def part_problems(self, spec: type[Spec], name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of the name or settings of an optimiser, schedule or augmentation."""

    def addition_problems(self, key: str, name: str) -> list[str]:
        """Problems of an entry of ``metrics``, ``sections`` or ``figures``."""


def load(path: Path | str, tables: Mapping[str, Any], catalogue: Catalogue | None = None) -> Suite:
    """Validate the tables of a suite. Raises :class:`SuiteError` with every problem found."""
    known = tables if isinstance(tables, Tables) else Tables(tables, path)
    suite: Suite | None = None
    invalid: ValidationError | None = None
    try:
        suite = Suite.model_validate_json(as_json(tables), strict=True)
    except ValidationError as error:
        invalid = error

    def problems() -> Iterator[Problem]:
        if invalid is not None:
            for location, what in _schema_problems(invalid):
                yield _written(location, tables), what
        yield from _pair_problems(tables)
        if catalogue is not None:
            yield from _name_problems(tables, catalogue)
            yield from _addition_problems(tables, catalogue)
            yield from _tune_problems(tables, catalogue)

    found = list(islice(dict.fromkeys(problems()), MAX_PROBLEMS + 1))
    if found or suite is None:
        lines = [f"{known.where(location)}: {what}" for location, what in found[:MAX_PROBLEMS]]
        more = [f"{path}: has more problems; the first {MAX_PROBLEMS} are shown"] if len(found) > MAX_PROBLEMS else []
        raise SuiteError([*lines, *more])
    return suite


def pair_recipe(suite: Suite, override: Mapping[str, Any]) -> Recipe:
    """The suite's recipe with a pair's or teacher's differences; drops are whole epochs."""
    return _recipe({**suite.recipe.model_dump(mode="json"), **override}).resolved()


def _recipe(table: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate_json(as_json(table), strict=True)


def _written(location: Location, tables: Mapping[str, Any]) -> Location:
    """Where the file has a setting of a part that the recipe took as a key of its own."""
    *above, key = location or ("",)
    place: Any = tables
    for name in above:
        known = isinstance(place, list) and isinstance(name, int) and name < len(place)
        place = place[name] if known else table(place).get(str(name))
    for part in OWN_KEYS if key not in table(place) else ():
        if key in table(table(place).get(part)):
            return (*above, part, key)
    return location


def _schema_problems(error: ValidationError, model: type[BaseModel] = Suite) -> Iterator[Problem]:
    details = error.errors()
    wrong = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    for detail in details:
        # Pydantic counts a list's good entries: with a bad one reported, "too short" means nothing.
        if not (detail["type"] == "too_short" and detail["loc"] in wrong):
            yield detail["loc"], _what(detail, model)


def _what(detail: Mapping[str, Any], model: type[BaseModel]) -> str:
    what = explain(detail)
    if detail["type"] != "extra_forbidden":
        return what
    for part in detail["loc"][:-1]:
        model = _TABLES.get((model, part), model)
    if model in {schema.Tune, schema.Tuning} and len(detail["loc"]) > 2:
        # Their tables have names of the suite's own: methods and settings.
        model = schema.TunedMethod if detail["loc"][0] == "tuning" and len(detail["loc"]) == 4 else Search
    return what + did_you_mean(str(detail["loc"][-1]), model.model_fields)


_TABLES: dict[tuple[type[BaseModel], int | str], type[BaseModel]] = {
    (Suite, "data"): schema.Data,
    (Suite, "recipe"): Recipe,
    (Suite, "pairs"): schema.Pair,
    (Suite, "methods"): schema.MethodTable,
    (Suite, "teachers"): schema.TeacherTable,
    (Suite, "tune"): schema.Tune,
    (Suite, "tuning"): schema.Tuning,
}


def _pair_problems(tables: Mapping[str, Any]) -> Iterator[Problem]:
    """What pairs, teachers and baselines name or change, and whether that fits; also where other parts are wrong."""
    recipe, pairs, teachers = table(tables.get("recipe")), rows(tables, "pairs"), table(tables.get("teachers"))
    labels = {str(row.get("label") or row["name"]) for row in rows(tables, "methods") if "name" in row}
    for index, pair in enumerate(pairs):
        for place, what in _recipe_problems(recipe, table(pair.get("recipe"))):
            yield ("pairs", index, "recipe", *place), what
        for label in table(pair.get("methods")) if labels else ():
            if label not in labels:
                yield ("pairs", index, "methods", label), f"is not a method of this suite{did_you_mean(label, labels)}"
    known = labels | {str(row["name"]) for row in rows(tables, "methods") if "name" in row}
    baselines = tables.get("baselines")
    for index, name in enumerate(baselines if isinstance(baselines, list) and known else ()):
        if isinstance(name, str) and name not in known:
            yield ("baselines", index), f"'{name}' is not a method or label of this suite{did_you_mean(name, known)}"
    used = {str(pair["teacher"]) for pair in pairs if "teacher" in pair}
    for name, teacher in teachers.items():
        if used and name not in used:
            yield ("teachers", name), f"no pair has this teacher{did_you_mean(name, used)}"
        for place, what in _recipe_problems(recipe, table(table(teacher).get("recipe"))):
            yield ("teachers", name, "recipe", *place), what
    yield from _teacher_seed_problems(tables)
    selections: list[tuple[Location, dict[str, Any]]] = [(("recipe", "selection"), recipe)]
    selections += [(("pairs", i, "recipe", "selection"), table(pair.get("recipe"))) for i, pair in enumerate(pairs)]
    for location, chosen in selections:
        if chosen.get("selection") == "validation" and not table(tables.get("data")).get("validation"):
            yield location, "'validation' needs data.validation, the images to cut from the training set"


def _teacher_seed_problems(tables: Mapping[str, Any]) -> Iterator[Problem]:
    """Seeds and weights of teachers that contradict ``teacher_seeds``, or the number of seeds."""
    seeds = tables.get("seeds")
    if not isinstance(seeds, list) or not seeds:
        return
    mode = tables.get("teacher_seeds", schema.default_teacher_seeds(len(seeds)))
    for name, row in table(tables.get("teachers")).items():
        weights, seed = table(row).get("weights"), table(row).get("seed")
        if isinstance(weights, list) and len(weights) != len(seeds):
            what = f"needs as many files as there are seeds ({len(seeds)}), got {len(weights)}"
            yield ("teachers", name, "weights"), what
        elif isinstance(weights, list) and len(seeds) > 1 and mode == "single":
            what = 'is a list, one for each seed; give one file, or set teacher_seeds = "with_seeds"'
            yield ("teachers", name, "weights"), what
        if mode == "with_seeds" and type(seed) is int and seed > 0:
            what = 'is not used: teachers have the seeds of their students; remove it, or set teacher_seeds = "single"'
            yield ("teachers", name, "seed"), what


def _recipe_problems(recipe: Mapping[str, Any], override: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        _recipe({**recipe, **override})
    except ValidationError as error:
        for place, what in _schema_problems(error, Recipe):
            # What is wrong with the suite's own recipe is reported there.
            if (place and place[0] in override) or (not place and _is_recipe(recipe)):
                yield place, what


def _is_recipe(table: Mapping[str, Any]) -> bool:
    try:
        _recipe(table)
    except ValidationError:
        return False
    return True


def _name_problems(tables: Mapping[str, Any], catalogue: Catalogue) -> Iterator[Problem]:
    """Unknown names and wrong settings, also where other parts of the file are wrong."""
    for key, what in _setting_problems(table(tables.get("data")), schema.Data, catalogue.data_problems):
        yield ("data", key), what
    yield from _part_problems(tables, catalogue)
    methods = {}
    for index, row in enumerate(rows(tables, "methods")):
        for key, what in _setting_problems(row, schema.MethodTable, catalogue.method_problems):
            yield ("methods", index, key), what
        if isinstance(row.get("name"), str):
            settings = {k: v for k, v in row.items() if k not in schema.MethodTable.model_fields}
            methods[str(row.get("label") or row["name"])] = row["name"], settings
    teachers = table(tables.get("teachers"))
    for index, pair in enumerate(rows(tables, "pairs")):
        model = table(teachers.get(str(pair.get("teacher")))).get("model") or pair.get("teacher")
        for role, name in (("teacher", model), ("student", pair.get("student"))):
            for _, what in catalogue.model_problems(name) if isinstance(name, str) else ():
                yield ("pairs", index, role), what
        for label, override in table(pair.get("methods")).items():
            if label in methods and isinstance(override, dict):
                name, settings = methods[label]
                known = {key for key, _ in catalogue.method_problems(name, settings)}
                for key, what in catalogue.method_problems(name, {**settings, **override}):
                    if key not in known:
                        yield ("pairs", index, "methods", label, key), what


def _part_problems(tables: Mapping[str, Any], catalogue: Catalogue) -> Iterator[Problem]:
    """Unknown names and wrong settings of what recipes take from plugins."""
    recipes: list[tuple[Location, dict[str, Any]]] = [(("recipe",), table(tables.get("recipe")))]
    recipes += [(("pairs", i, "recipe"), table(pair.get("recipe"))) for i, pair in enumerate(rows(tables, "pairs"))]
    teachers = table(tables.get("teachers"))
    recipes += [(("teachers", name, "recipe"), table(table(one).get("recipe"))) for name, one in teachers.items()]
    for where, recipe in recipes:
        named: list[tuple[Location, type[Spec], object]] = [
            ((*where, "optimizer"), OptimizerSpec, recipe.get("optimizer")),
            ((*where, "schedule"), ScheduleSpec, recipe.get("schedule")),
        ]
        augmentation = recipe.get("augmentation")
        for index, step in enumerate(augmentation if isinstance(augmentation, list) else ()):
            named.append(((*where, "augmentation", index), AugmentationSpec, step))
        for place, spec, part in named:
            settings = dict(table(part))
            name = part if isinstance(part, str) else settings.pop("name", None)
            if isinstance(name, str):
                for key, what in catalogue.part_problems(spec, name, settings):
                    yield (*place, *([key] if key else [] if isinstance(part, str) else ["name"])), what
        for key, parts in OWN_KEYS.items():
            part = table(recipe.get(key))
            for own in parts.get(str(part.get("name")), ()):
                if own in part and own in recipe:
                    yield (*where, key, own), f"is given twice, here and as {own} of the recipe; remove one"


def _tune_problems(tables: Mapping[str, Any], catalogue: Catalogue) -> Iterator[Problem]:
    """Labels, settings and values of ``[tune]`` that the suite or its methods do not have."""
    tune = table(tables.get("tune"))
    methods = {str(row.get("label") or row["name"]): row for row in rows(tables, "methods") if "name" in row}
    for label, searches in tune.items():
        if label in schema.Tune.model_fields or not methods:
            continue
        if label not in methods:
            known = {*methods, *schema.Tune.model_fields}
            yield ("tune", label), f"is not a method of this suite{did_you_mean(label, known)}"
            continue
        row = methods[label]
        settings = {key: value for key, value in row.items() if key not in schema.MethodTable.model_fields}
        wrong = {key for key, _ in catalogue.method_problems(str(row["name"]), settings)}
        for key, search in table(searches).items():
            values = table(search).get("choices")
            tried = values if isinstance(values, list) else [table(search)[b] for b in ("low", "high") if b in search]
            for value in tried if key not in wrong else ():
                for found, what in catalogue.method_problems(str(row["name"]), {**settings, key: value}):
                    if found == key:
                        yield ("tune", label, key), what
    pairs = [f"{pair.get('teacher')}:{pair.get('student')}" for pair in rows(tables, "pairs")]
    if isinstance(tune.get("pair"), str) and pairs and tune["pair"] not in pairs:
        yield ("tune", "pair"), f"'{tune['pair']}' is not a pair of this suite{did_you_mean(tune['pair'], pairs)}"
    seeds = tables.get("seeds")
    if isinstance(tune.get("seed"), int) and isinstance(seeds, list) and tune["seed"] not in seeds:
        yield ("tune", "seed"), f"must be one of seeds, {', '.join(map(str, seeds))}; got {shown(tune['seed'])}"


def _addition_problems(tables: Mapping[str, Any], catalogue: Catalogue) -> Iterator[Problem]:
    """Unknown metrics, sections and figures."""
    for key in ("metrics", "sections", "figures"):
        names = tables.get(key)
        for index, name in enumerate(names if isinstance(names, list) else ()):
            for what in catalogue.addition_problems(key, name) if isinstance(name, str) else ():
                yield (key, index), what


def _setting_problems(
    named: Mapping[str, Any],
    keys: type[BaseModel],
    ask: Callable[[str, Mapping[str, Any]], Iterable[tuple[str, str]]],
) -> Iterator[tuple[str, str]]:
    """Wrong settings of what a table names; a key that is none may be a misspelt one of the table's own."""
    settings = {k: v for k, v in named.items() if k not in keys.model_fields}
    misspelt = {
        key: f"unknown key{did_you_mean(key, keys.model_fields)}"
        for key in settings
        if nearest(key, keys.model_fields) is not None
    }
    if not isinstance(named.get("name"), str):
        # Whose settings they are is not known.
        yield from misspelt.items()
        return
    for key, what in ask(named["name"], settings):
        unknown = what.startswith("unknown setting") and "did you mean" not in what
        yield key or "name", misspelt.get(key, what) if unknown else what
