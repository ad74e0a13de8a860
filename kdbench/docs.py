"""Pages of ``docs/`` that are generated: ``methods.md`` from the registry, ``suite-reference.md`` from the schema.

``python -m kdbench.docs > docs/methods.md`` and ``python -m kdbench.docs suite > docs/suite-reference.md``.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from kdbench import reference
from kdbench.describe import STUDENT, TEACHER, describe_offer
from kdbench.discovery import SUPPLIED, Offer, Registry, discover
from kdbench.discovery.settings import REQUIRED
from kdbench.hookspecs import AugmentationSpec, MethodSpec, OptimizerSpec, ScheduleSpec, Spec
from kdbench.words import plural

DISTRIBUTION = "kdbench"

INTRODUCTION = """\
# Methods

<!-- Written by `python -m kdbench.docs > docs/methods.md`; a test fails when it is not current. -->

The {count} losses included in kdbench. `kdbench list methods` also lists those of other packages, and
`kdbench describe NAME` prints the information on this page. A name with a slash is a variant: the same class
with other settings, or another system's formulation.

*Reads* are the taps that a loss reads from both networks: `stage*` every stage's map, `stage*/pre` the same before the
activation, `stage-1` the last. *Adapters* are trained with the student and counted in the cost table; their sizes
are for teacher {teacher} and student {student} on CIFAR-100.
"""


def methods_page(registry: Registry) -> str:
    """The page as Markdown: an overview, and a section for each first-party method."""
    rows = [_row(offer, registry) for offer in first_party(registry)]
    parts = [
        INTRODUCTION.format(count=len(rows), teacher=TEACHER, student=STUDENT),
        "\n".join(
            [
                "| method | what it is | source |",
                "|---|---|---|",
                *(f"| [`{r['name']}`](#{_anchor(r['name'])}) | {_cell(r['summary'])} | {_source(r)} |" for r in rows),
            ]
        )
        + "\n",
        *("\n".join(_section(row)) + "\n" for row in rows),
    ]
    return "\n".join(parts)


def first_party(registry: Registry) -> list[Offer[MethodSpec]]:
    """The methods included in kdbench, in their order, without those of other packages."""
    return [offer for offer in registry.methods if _is_ours(offer)]


def _row(offer: Offer[MethodSpec], registry: Registry) -> dict[str, Any]:
    """The properties of a method; fewer if it cannot be built without further settings."""
    # What the class's docstring adds to its first line, the summary. A variant with a summary may differ from it.
    docstring = "" if offer.spec.summary else inspect.getdoc(offer.load()) or ""
    details = docstring.partition("\n\n")[2].replace("``", "`")
    row = {**offer.to_json(), "details": details}
    if any(setting.default == REQUIRED for setting in offer.declared.settings.values()):
        settings = {name: setting.to_json() for name, setting in offer.declared.settings.items()}
        return {**row, "settings": settings, "stages": (), "reads": None}
    stages = offer.load()(**offer.spec.presets).stages()
    return {**row, **describe_offer(offer, registry), "stages": stages}


def _section(row: Mapping[str, Any]) -> Iterable[str]:
    yield f"## `{row['name']}`"
    yield ""
    yield row["summary"]
    yield ""
    if row["details"]:
        yield row["details"]
        yield ""
    if row["paper"]:
        yield f"- Source: {row['paper']}"
    yield f"- Reads: {_reads(row)}"
    for key, value in row.items():
        if key.startswith("adapters_for_") and value:
            yield f"- Adapters: {', '.join(f'`{name}` ({size})' for name, size in value.items())}"
    for stage in row["stages"]:
        trains, reads = (", ".join(f"`{name}`" for name in names) for names in (stage.trains, sorted(stage.reads)))
        name = f"`{stage.name}`, {plural(stage.epochs, 'epoch')}"
        yield f"- Stage before the main one: {name}; reads {reads}; trains {trains}"
    for check, reason in row.get("expected_failures", {}).items():
        yield f"- Fails the check `{check}` by design: {reason}"
    if row["settings"]:
        yield ""
        yield "| setting | default | type |"
        yield "|---|---|---|"
        for name, setting in row["settings"].items():
            yield f"| `{name}` | {_default(setting['default'])} | {_cell(setting['type'])} |"


def _reads(row: Mapping[str, Any]) -> str:
    if row["reads"] is None:
        return "depends on its settings"
    student = _names(row.get("student_reads", row["reads"]))
    teacher = _names(row.get("teacher_reads", row["reads"])) if row["needs_teacher"] else "nothing"
    return student if student == teacher else f"{student} of the student, {teacher} of the teacher"


def _names(reads: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(reads))


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return "required" if value == REQUIRED else f"`{json.dumps(value)}`"


def _source(row: Mapping[str, Any]) -> str:
    """The paper with its address behind its words."""
    words, _, address = str(row["paper"]).rpartition(", ")
    return f"[{_cell(words)}]({address})" if address.startswith("https://") else _cell(row["paper"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(name: str) -> str:
    """As GitHub and others make anchors of headings."""
    return re.sub(r"[^\w-]", "", name.lower())


SUITE_INTRODUCTION = """\
# Keys of a suite file

<!-- Written by `python -m kdbench.docs suite > docs/suite-reference.md`; a test fails when it is not current. -->

Every key of a suite file, with its type and range, its default, and its meaning. `kdbench describe recipe` prints the
keys of one table. Settings of methods and data sets are keys of their tables: see [methods.md](methods.md) and
`kdbench describe image_folder`. Integers must fit into 64 bits, numbers must be finite and at most 1e19 in magnitude. A
list or table may have at most 1,000 entries, a file at most 1 MiB.
"""

HEADINGS = {
    "suite": "Top level",
    "data": "`[data]`",
    "recipe": "`[recipe]`, and `recipe` of a pair or teacher",
    "pairs": "`[[pairs]]`",
    "teachers": "`[teachers.NAME]`",
    "methods": "`[[methods]]` and `[[add_methods]]`",
    "tune": "`[tune]`",
    "tuning": "`[tuning]`",
}


def suite_page(registry: Registry) -> str:
    """The page on suite files as Markdown: keys of each table, settings of each part of a recipe."""
    parts = [SUITE_INTRODUCTION]
    for name, heading in HEADINGS.items():
        parts += [_keys_section("##", heading, row) for row in reference.rows(name)]
    for title, spec in (
        ("Optimizers", OptimizerSpec),
        ("Schedules", ScheduleSpec),
        ("Augmentations", AugmentationSpec),
    ):
        parts.append(f"## {title}\n\n{PARTS[spec]}\n")
        parts += ["\n".join(_part(offer)) + "\n" for offer in registry.offers[spec] if _is_ours(offer)]
    return "\n".join(parts)


PARTS: Mapping[type[Spec], str] = {
    OptimizerSpec: """\
Values of `recipe.optimizer`: a name, or a table, as `{ name = "adamw", betas = [0.9, 0.98] }`. `momentum` and
`nesterov` of `sgd` may also be keys of the recipe. timm's go by `timm:NAME`, as `timm:lamb`, with the settings
`momentum`, `betas`, `eps`, and a table `options` for all others.""",
    ScheduleSpec: """\
Values of `recipe.schedule`, likewise. `drops` and `drop_factor` of `steps`, and `min_lr` of `cosine`, may also
be keys of the recipe, which documents them. The warm-up comes before any schedule.""",
    AugmentationSpec: """\
Entries of `recipe.augmentation`: a name, or a table with `name` and settings. Transforms of
`torchvision.transforms.v2` go by `torchvision:NAME`, as `torchvision:ColorJitter`, with their arguments in a
table `options`; they are slower than the built-in ones, as they change one image after another.""",
}


def _part(offer: Offer[Any]) -> Iterable[str]:
    declared = offer.declared
    settings = {
        name: value for name, value in declared.settings.items() if name not in SUPPLIED.get(type(offer.spec), ())
    }
    yield f"### `{offer.spec.name}`"
    yield ""
    yield declared.summary.replace("``", "`")
    if settings:
        yield ""
        yield "| setting | default | type |"
        yield "|---|---|---|"
        for name, setting in settings.items():
            yield f"| `{name}` | {_default(setting.default)} | {_cell(setting.type)} |"


def _is_ours(offer: Offer[Any]) -> bool:
    return offer.provider.distribution == DISTRIBUTION


def _keys_section(level: str, heading: str, row: Mapping[str, Any]) -> str:
    lines = [f"{level} {heading}", "", row["summary"], "", "| key | default | type | meaning |", "|---|---|---|---|"]
    for key, value in row["keys"].items():
        meaning = value["description"].replace("``", "`")
        lines.append(f"| `{key}` | {_default(value['default'])} | {_cell(value['type'])} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(suite_page(discover()) if sys.argv[1:] == ["suite"] else methods_page(discover()))
