"""Commands on results folders: combine several, and remove what no plan names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kdbench.cli.application import OK, SOME_TRIAL_FAILED, app
from kdbench.cli.options import RUNS, AsJson, Debug, Output, Overrides, Plugins, SuiteArgument
from kdbench.cli.output import show, show_json, show_warning
from kdbench.cli.trials import default_settings
from kdbench.words import plural

if TYPE_CHECKING:
    from kdbench.results.merge import Conflict, Merge
    from kdbench.results.prune import Old
    from kdbench.results.record import Environment


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="DIR", help="Results folders, as --output of kdbench run.")],
    into: Annotated[
        Path, typer.Option("--into", metavar="DIR", help="Results folder to copy to; it may have results already.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen, and write nothing.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Combine the finished trials of several results folders. Exit code 1: there are conflicts or unusable trials."""
    from kdbench.results.merge import merge as merge_folders

    done = merge_folders(sources, into, dry_run=dry_run)
    for remark in done.remarks:
        show_warning(remark)
    if as_json:
        show_json(_describe(done, into, dry_run))
    else:
        _show_merge(done, into, dry_run)
    raise typer.Exit(OK if done.complete else SOME_TRIAL_FAILED)


def _show_merge(done: Merge, into: Path, dry_run: bool) -> None:
    show(_table("", ("folder", "finished", "copied", "same", "conflicts", "unusable"), _counts(done, into)))
    if done.decisions.duplicates:
        show(_table("\nThe same numbers in two folders", ("suite", "trials", "kept", "also in"), _duplicates(done)))
    if done.left_out:
        show(_table("\nUnusable trials, which were not copied", ("trials", "in", "reason"), _left_out(done)))
        show("copy these folders again from where they were trained, or train the trials again with `kdbench run`")
    if done.decisions.conflicts:
        columns = ("trial", "kept", "top-1", "other", "top-1", "differs in", "environment")
        show(_table("\nConflicts", columns, _conflicts(done.decisions.conflicts)))
        for home in sorted({conflict.home for conflict in done.decisions.conflicts}):
            show(escape(f"the other ones are in {home}; `kdbench diff` compares two folders of trials"))
    moves = done.decisions.moves
    trials, teachers = sum(move.trial for move in moves), sum(move.teacher for move in moves)
    copied = f"{plural(trials, 'trial')} and {plural(teachers, 'teacher')}"
    if unfinished := sum(source.unfinished for source in done.sources):
        show(f"not copied: {plural(unfinished, 'unfinished trial')}")
    if failed := sum(source.failed for source in done.sources):
        show(f"not copied: {plural(failed, 'failed trial')}")
    if dry_run:
        show(escape(f"would copy {copied} to {into}; nothing was written"))
    else:
        show(escape(f"copied {copied} to {into} ({done.bytes / 1e6:.1f} MB)"))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _counts(done: Merge, into: Path) -> Iterable[Sequence[str]]:
    copied = Counter(move.found.source for move in done.decisions.moves if move.trial and move.home == into)
    same = Counter(duplicate.found.source for duplicate in done.decisions.duplicates)
    conflicts = Counter(conflict.found.source for conflict in done.decisions.conflicts)
    for source in done.sources:
        finished, unusable = len(source.trials) + len(source.left_out), len(source.left_out)
        counted = (finished, copied[source.path], same[source.path], conflicts[source.path], unusable)
        yield str(source.path), *map(str, counted)


def _duplicates(done: Merge) -> Iterable[Sequence[str]]:
    """One row for all trials with the same suite, folders and environments."""
    dates: dict[tuple[str, str, str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for one in done.decisions.duplicates:
        found = one.found.result
        environments = _environment(one.kept.result.environment), _environment(found.environment)
        key = one.found.suite, str(one.kept.source), environments[0], str(one.found.source), environments[1]
        dates[key].append((one.kept.result.finished, found.finished))
    for (suite, kept, kept_on, other, other_on), moments in dates.items():
        kept_dates, other_dates = (_days(days) for days in zip(*moments, strict=True))
        yield suite, str(len(moments)), f"{kept}: {kept_on}, {kept_dates}", f"{other}: {other_on}, {other_dates}"


def _environment(environment: Environment) -> str:
    torch = f"torch {environment.torch}" if environment.torch else ""
    return ", ".join(filter(None, (environment.device, torch, environment.platform)))


def _days(moments: Sequence[str]) -> str:
    first, last = min(moments)[:10], max(moments)[:10]
    return first if first == last else f"{first} to {last}"


def _left_out(done: Merge) -> Iterable[Sequence[str]]:
    """One row for all trials of a suite with the same reason."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in done.left_out:
        places[str(one.source / one.suite), one.reason].append(one.id)
    for (suite, reason), ids in places.items():
        yield ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more", suite, reason


def _conflicts(conflicts: Sequence[Conflict]) -> Iterable[Sequence[str]]:
    from kdbench.results.compare import changes

    teachers: dict[tuple[Path, str], Conflict] = {}
    for one in conflicts:
        if one.kept_teacher is not None and one.kept_teacher.made != one.found.teacher.made:
            teachers.setdefault((one.found.source, one.found.teacher.key), one)
    rows: list[tuple[str, Any, Any, Sequence[str]]] = []
    for (_, key), one in teachers.items():
        rows.append((f"_teachers/{key}", one.kept_teacher, one.found.teacher, ("weights",)))
    for one in conflicts:
        rows.append((f"{one.found.suite}/{one.found.id}", one.kept, one.found, one.differs))
    for name, kept, found, differs in rows:
        environments = [{} if side is None else side.result.environment.model_dump() for side in (kept, found)]
        changed = changes(*environments) if kept is not None else {}
        where = "; ".join(f"{key}: {one} / {other}" for key, (one, other) in changed.items())
        sides = [text for side in (kept, found) for text in _side(side)]
        yield name, *sides, ", ".join(differs), where or ("" if kept is None else "equal")


def _side(held: Any) -> tuple[str, str]:
    if held is None:
        return "", ""
    top1 = held.result.top1
    return f"{held.source}, {held.result.finished[:10]}", held.result.status if top1 is None else f"{top1:.2f}"


def _describe(done: Merge, into: Path, dry_run: bool) -> dict[str, Any]:
    def side(held: Any) -> dict[str, Any] | None:
        if held is None:
            return None
        result = held.result
        return {
            "folder": str(held.source),
            "status": result.status,
            "top1": result.top1,
            "finished": result.finished,
            "environment": result.environment.model_dump(),
        }

    def trial(one: Any) -> dict[str, Any]:
        return {"suite": one.found.suite, "id": one.found.id, "kept": side(one.kept), "other": side(one.found)}

    return {
        "into": str(into),
        "dry_run": dry_run,
        "copied": [
            {"suite": move.found.suite, "id": move.found.id, "from": str(move.found.source), "to": str(move.home)}
            for move in done.decisions.moves
            if move.trial
        ],
        "same": [trial(one) for one in done.decisions.duplicates],
        "conflicts": [
            trial(one) | {"differs": one.differs, "kept_teacher": side(one.kept_teacher), "stored": str(one.home)}
            for one in done.decisions.conflicts
        ],
        "unusable": [
            {"suite": one.suite, "id": one.id, "from": str(one.source), "reason": one.reason} for one in done.left_out
        ],
        "unfinished": sum(source.unfinished for source in done.sources),
        "failed": sum(source.failed for source in done.sources),
        "bytes": done.bytes,
        "remarks": done.remarks,
    }


@app.command()
def prune(
    suite: SuiteArgument,
    overrides: Overrides = None,
    plugins: Plugins = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it, they are only shown.")] = False,
    output: Output = RUNS,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the trials of a suite that its plan does not name any more, and unused teachers; remove them with --yes."""
    from kdbench.opening import open_suite
    from kdbench.results.prune import prune as prune_folder

    opened = open_suite(suite, overrides=overrides or (), plugins=plugins or ())
    path = opened.given if isinstance(opened.given, Path) else None
    old = prune_folder(opened.plan, path, output, default_settings(opened.registry), remove=yes)
    for remark in old.remarks:
        show_warning(remark)
    if as_json:
        show_json(_describe_old(old, removed=yes))
        return
    if not old.trials and not old.teachers:
        show("nothing to remove: the plan names all trials, and all teachers are in use")
        return
    if old.trials:
        columns = ("trial", "status", "top-1", "date", "settings", "not planned because", "MB")
        show(_table("", columns, (_old_row(trial.row, trial.why) for trial in old.trials)))
    if old.teachers:
        rows = ((t.key, t.model, _date(t.date), f"{t.bytes / 1e6:.1f}") for t in old.teachers)
        show(_table("\nTeachers that no trial and no plan names", ("teacher", "network", "date", "MB"), rows))
    counted = f"{plural(len(old.trials), 'trial')} and {plural(len(old.teachers), 'teacher')}"
    freed = f"{old.bytes / 1e6:.1f} MB"
    show(f"removed {counted}: freed {freed}" if yes else f"{counted}, {freed}; nothing was removed: add --yes")


def _old_row(row: dict[str, Any], why: str) -> Sequence[str]:
    top1 = "" if row["top1"] is None else f"{row['top1']:.2f}"
    settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
    return row["id"], row["status"], top1, _date(row["date"]), settings, why, f"{row['bytes'] / 1e6:.1f}"


def _date(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _describe_old(old: Old, *, removed: bool) -> dict[str, Any]:
    return {
        "removed": removed,
        "trials": [{**trial.row, "why": trial.why} for trial in old.trials],
        "teachers": [{"key": t.key, "model": t.model, "date": t.date, "bytes": t.bytes} for t in old.teachers],
        "bytes": old.bytes,
        "remarks": old.remarks,
    }
