"""Writes the report: one offline page, Markdown, CSV and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

import kdbench
from kdbench.report import escape, made_from, naming, protocol, sections, wording
from kdbench.report.frame import Filters
from kdbench.report.study import Study, read_study
from kdbench.report.styles import INK, NEUTRAL
from kdbench.report.verdict import verdicts
from kdbench.results import PlanRecord, SuiteFolder, remove_leftovers, write_text
from kdbench.status import Status

if TYPE_CHECKING:
    from kdbench.report.figures import Drawing

NO_OUTCOME = (Status.FAILED, Status.STALE, Status.SKIPPED, Status.PENDING)

# matplotlib's markers as paths within a box from -5 to 5.
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
    plots: bool = True,
    warn: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of a results folder, however far it has come; the path of its ``index.html``.

    ``plan`` says which trials are reported and under which labels; without
    it, those of the suite as last planned. ``methods`` (shell patterns on label or method name), ``pairs``
    (``teacher:student``) and ``seeds`` select what is shown; gains over a baseline are given even where it is not
    shown.

    Writes ``index.html``, ``leaderboard.md``, ``leaderboard.csv``, ``trials.csv`` and, but for ``plots=False``,
    ``plots/*.svg`` and ``plots/*.png`` below ``report``. ``warn`` hears of results that a report in this folder
    showed and this one does not.

    Raises:
        ResultsError: nothing was planned in ``folder``, another protocol version wrote it, no trial passes the
            filters, or ``report`` cannot be written.
    """
    filters = Filters(tuple(methods), tuple(pairs), tuple(seeds))
    # Taken first: what changes while a run goes on is then shown, or makes the page out of date.
    digest = made_from.digest(folder, plan=plan, filters=filters.describe(), plots=plots)
    study = read_study(folder, filters, plan)
    if warn is not None and (loss := naming.lost(report, study.trials)):
        warn(loss)
    for place in (report, report / "plots"):
        remove_leftovers(place)
    drawn = _draw(study, report / "plots") if plots else {}
    write_text(report / "trials.csv", escape.csv(study.trials))
    write_text(report / "leaderboard.csv", escape.csv(study.cells))
    write_text(report / "leaderboard.md", markdown(study))
    # Last: it says what all of them were made from.
    write_text(report / "index.html", page(study, drawn, digest))
    return report / "index.html"


def page(study: Study, plots: Mapping[str, Drawing], digest: str) -> str:
    """The page, with the given figures by name and what it was made from."""
    environment = _environment(study, escape_html=True)
    environment.globals["plots"] = plots
    parts = []
    for section in sections.SECTIONS:
        context = section.context(study)
        if context is not None:
            template = environment.get_template(f"sections/{section.name}.html.j2")
            parts.append({"name": section.name, "title": section.title, "body": Markup(template.render(**context))})
    return environment.get_template("page.html.j2").render(
        sections=parts,
        css=Markup(_asset("style.css")),
        javascript=Markup(_asset("sort.js")),
        version=kdbench.__version__,
        made_from=digest,
        **_head(study),
    )


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
        "facts": protocol.facts(study),
        "filters": study.filters.describe(),
        "warnings": protocol.teacher_warnings(study),
    }


def _draw(study: Study, folder: Path) -> dict[str, Drawing]:
    # matplotlib takes a second to import, and only here is it needed.
    from kdbench.report.figures import draw

    return draw(study, folder)


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
        "shade": _shade,
        "state": _state,
    }
    return environment


def _rank(value: float) -> str:
    return f"{value:g}"


def _themed(colour: str) -> str:
    """The two colours without a hue follow the page's light or dark theme."""
    return {INK: "var(--method-ink)", NEUTRAL: "var(--method-neutral)"}.get(colour, colour)


def _shade(gain: float | None, full: float) -> Markup:
    if gain is None or gain == 0:
        return Markup("")
    share = round(0.34 * min(1.0, abs(gain) / full), 3)
    kind = "up" if gain > 0 else "down"
    return Markup(f'style="background: rgb(var(--{kind}-rgb) / {share})"')


def _state(row: Mapping[str, Any]) -> str:
    """Why a pair and method have no result."""
    counts = [f"{row[state]} {state}" for state in NO_OUTCOME if row[state]]
    alone = row[Status.SKIPPED] and len(counts) == 1
    text = Status.SKIPPED if alone else wording.listing(counts)
    return f"{text}: {row['reason']}" if row["reason"] else text


def _asset(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")
