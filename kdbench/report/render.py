"""Writes the report: one offline page, Markdown, CSV and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

import kdbench
from kdbench.errors import PluginError
from kdbench.hookspecs import SectionSpec
from kdbench.report import escape, made_from, naming, protocol, sections, wording
from kdbench.report.over_pairs import over_pairs
from kdbench.report.parts import PagePart, PageParts, parts_of
from kdbench.report.resolution import Resolution, of_row, resolution
from kdbench.report.study import Study, read_study
from kdbench.report.styles import INK, NEUTRAL
from kdbench.report.verdict import verdicts
from kdbench.results import NO_PLAN, PlanRecord, SuiteFolder, remove_leftovers, write_text
from kdbench.status import Status
from kdbench.suite.filters import Filters

if TYPE_CHECKING:
    from kdbench.report.figures.draw import Drawing

FURTHER = {"name": "further-figures", "title": "Further figures"}
"""The section for figures of plugins whose section is not shown."""
NO_OUTCOME = (Status.FAILED, Status.STALE, Status.SKIPPED, Status.PENDING)

FULL_SHADE = 0.34
"""Opacity of the strongest shade of a gain."""

# matplotlib's markers as SVG paths in a box from -5 to 5.
MARKERS = {
    "o": "M-4.4 0a4.4 4.4 0 1 0 8.8 0a4.4 4.4 0 1 0 -8.8 0z",
    "s": "M-4 -4h8v8h-8z",
    "^": "M0 -4.8L4.8 4.2H-4.8z",
    "v": "M0 4.8L4.8 -4.2H-4.8z",
    "D": "M0 -5.2L5.2 0L0 5.2L-5.2 0z",
    "P": "M-1.7 -5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
    "X": "M-4.7 -2.4L-2.4 -4.7L0 -2.3L2.4 -4.7L4.7 -2.4L2.3 0L4.7 2.4L2.4 4.7L0 2.3L-2.4 4.7L-4.7 2.4L-2.3 0z",
}


def render(
    folder: SuiteFolder,
    report: Path,
    *,
    plan: PlanRecord | None = None,
    methods: Sequence[str] = (),
    pairs: Sequence[str] = (),
    seeds: Sequence[int] = (),
    highlight: Sequence[str] = (),
    plots: bool = True,
    parts: PageParts | None = None,
    warn: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of a results folder, finished or not; returns the path of its ``index.html``.

    ``plan`` sets the trials and their labels; by default, those of the suite as last planned. ``methods`` (shell
    patterns on label or method name), ``pairs`` (``teacher:student``) and ``seeds`` select what is shown; gains over a
    baseline are given even if it is not shown. ``highlight`` are labels to mark in tables and figures.

    Writes ``index.html``, ``leaderboard.md``, ``leaderboard.csv``, ``overall.csv``, ``trials.csv`` and, unless
    ``plots=False``, ``plots/*.svg`` and ``plots/*.png`` below ``report``. ``parts`` are the sections and figures; by
    default, those of the plugins that the plan names are loaded. ``warn`` is called for results that the previous
    report in this folder showed and this one does not, and for sections and figures that are left out.

    Raises:
        ResultsError: nothing was planned in ``folder``, another protocol version wrote it, no trial passes the
            filters, or ``report`` cannot be written.
        SuiteError: a label in ``highlight`` is not shown.
    """
    filters = Filters(tuple(methods), tuple(pairs), tuple(seeds))
    # Computed first: a change during rendering is either shown or makes the page out of date.
    parts = parts or parts_of(plan or folder.plan or NO_PLAN)
    digest = made_from.digest(
        folder, plan=plan, filters=filters.describe(), plots=plots, parts=parts, highlight=highlight
    )
    study = read_study(folder, filters, plan, highlight)
    warn = warn or (lambda _: None)
    if loss := naming.lost(report, study.trials):
        warn(loss)
    for problem in parts.problems:
        warn(problem)
    for place in (report, report / "plots"):
        remove_leftovers(place)
    drawn, failed = _draw(study, report / "plots", parts) if plots else ({}, {})
    for name, why in failed.items():
        warn(f"figure '{name}' is left out of the report: {why}")
    write_text(report / "trials.csv", escape.csv(study.trials))
    write_text(report / "leaderboard.csv", escape.csv(study.cells))
    write_text(report / "overall.csv", escape.csv(over_pairs(study)))
    write_text(report / "leaderboard.md", markdown(study))
    # Last: it contains the digest of all inputs.
    write_text(report / "index.html", page(study, parts, drawn, failed, digest, warn))
    return report / "index.html"


def page(
    study: Study,
    parts: PageParts,
    plots: Mapping[str, Drawing],
    failed: Mapping[str, str],
    digest: str,
    warn: Callable[[str], None],
) -> str:
    """The page. ``plots``: figures by name; ``failed``: reasons for missing ones; ``digest``: of the inputs."""
    environment = _environment(study, escape_html=True)
    environment.globals["plots"] = plots
    shown: dict[str, dict[str, Any]] = {}
    for section in parts.sections:
        try:
            body = section(study, partial(_body, environment, section))
        except PluginError as error:
            warn(f"section '{section.name}' is left out of the report: {error}")
            body = _added(environment, notes=[f"The section '{section.name}' is missing: {error}"])
        if body is not None:
            title = section.offer.spec.title if section.offer is not None else ""
            shown[section.name] = {"name": section.name, "title": title or section.name, "body": body}
    for figure in parts.figures:
        # The template of a section places its built-in figures.
        if figure.built_in or not (figure.name in plots or figure.name in failed):
            continue
        notes = [f"The figure '{figure.name}' is missing: {failed[figure.name]}"] if figure.name in failed else []
        wanted = figure.offer.spec.section if figure.offer is not None else ""
        place = wanted if wanted in shown else FURTHER["name"]
        shown.setdefault(place, {**FURTHER, "body": Markup("")})["body"] += _added(environment, figure.name, notes)
    return environment.get_template("page.html.j2").render(
        sections=list(shown.values()),
        css=Markup(_asset("style.css")),
        javascript=Markup(_asset("sort.js")),
        version=kdbench.__version__,
        made_from=digest,
        **_head(study),
    )


def _body(environment: jinja2.Environment, section: PagePart[SectionSpec], made: Any) -> Markup | None:
    """The HTML of a section; a built-in one returns the variables of its template."""
    if made is None:
        return None
    if section.built_in:
        return Markup(environment.get_template(f"sections/{section.name}.html.j2").render(**made))
    if not isinstance(made, Markup):
        got = type(made).__name__
        raise PluginError(f"section '{section.name}' must return a markupsafe.Markup or None, got {got}")
    return made


def _added(environment: jinja2.Environment, figure: str = "", notes: Sequence[str] = ()) -> Markup:
    """A figure of a plugin, with notes about missing parts."""
    return Markup(environment.get_template("added.html.j2").render(figure=figure, notes=notes))


def markdown(study: Study) -> str:
    """``leaderboard.md``."""
    tables = sections.pairs(study)
    assert tables is not None
    return (
        _environment(study, escape_html=False)
        .get_template("leaderboard.md.j2")
        .render(
            verdicts=verdicts(study),
            overall=study.overall if len(study.pairs) > 1 and study.cells["n"].sum() else None,
            tables=tables["tables"],
            validation=tables["validation"],
            paragraphs=protocol.paragraphs(study),
            recipe=protocol.recipe_rows(study),
            settings=protocol.settings_rows(study),
            command=protocol.command(study),
            from_python=protocol.from_python(study),
            **_head(study),
        )
    )


def _head(study: Study) -> dict[str, Any]:
    return {
        "question": study.suite.get("question") or study.name,
        "summary": protocol.summary(study),
        "filters": study.filters.describe(),
        # A reader of the page alone must not take a shortened run for the suite.
        "overrides": " ".join(f"--set {override}" for override in study.plan.overrides),
        "warnings": protocol.teacher_warnings(study),
    }


def _draw(study: Study, folder: Path, parts: PageParts) -> tuple[dict[str, Drawing], dict[str, str]]:
    # Importing matplotlib takes a second, and only figures need it.
    from kdbench.report.figures.draw import draw

    return draw(study, folder, parts.figures)


def _environment(study: Study, *, escape_html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kdbench.report"),
        autoescape=escape_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "signed": wording.signed,
        "probability": wording.probability,
        "duration": wording.duration,
        "milliseconds": wording.milliseconds,
        "mebibytes": wording.mebibytes,
        "count": wording.count,
        "rank": _rank,
        "themed": _themed,
        "md": escape.markdown,
        "code": escape.code,
    }
    environment.globals |= {
        "study": study,
        "styles": study.styles,
        "markers": MARKERS,
        "interval": wording.interval,
        "mean_std": wording.mean_std,
        "gain": wording.gain,
        "plural": wording.plural,
        "listing": wording.listing,
        "resolutions": tuple(Resolution),
        "resolution": of_row,
        "resolution_of": resolution,
        "shade": _shade,
        "state": _state,
    }
    return environment


def _rank(value: float) -> str:
    return f"{value:g}"


def _themed(colour: str) -> str:
    """The two grey colours follow the light or dark theme of the page."""
    return {INK: "var(--method-ink)", NEUTRAL: "var(--method-neutral)"}.get(colour, colour)


def _shade(row: Mapping[str, Any], name: str, full: float) -> Markup:
    """The background of a difference; hatched unless its interval excludes 0."""
    gain = row[name]
    if gain is None or gain == 0:
        return Markup("")
    share = round(FULL_SHADE * min(1.0, abs(gain) / full), 3)
    colour = f"rgb(var(--{'up' if gain > 0 else 'down'}-rgb) / {share})"
    if of_row(row, name) in (Resolution.BETTER, Resolution.WORSE):
        return Markup(f'style="background: {colour}"')
    return Markup(f'style="--hatch: {colour}"')


def _state(row: Mapping[str, Any]) -> str:
    """Why a pair and method have no result."""
    counts = [f"{row[state]} {state}" for state in NO_OUTCOME if row[state]]
    alone = row[Status.SKIPPED] and len(counts) == 1
    text = Status.SKIPPED if alone else wording.listing(counts)
    return f"{text}: {row['reason']}" if row["reason"] else text


def _asset(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")
