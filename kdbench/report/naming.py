"""What a report's folder is called, so that a report of a part never takes the place of the whole one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kdbench.errors import ResultsError
from kdbench.report import escape, wording
from kdbench.report.frame import Filters
from kdbench.status import FINISHED
from kdbench.suite.plan import content_hash

LONGEST = 80


def report_name(base: str, overrides: Sequence[str] = (), filters: Filters | None = None) -> str:
    """``base``, and what was changed of it or chosen: ``digits--recipe.epochs=2--seed=0``.

    A hash replaces what would be too long or does not suit a folder's name. Spaces around ``=`` and the order of the
    overrides make no difference.

    >>> report_name("digits", ["recipe.epochs=2"], Filters(methods=["none", "kd"]))
    'digits--recipe.epochs=2--method=none+kd'
    """
    filters = filters or Filters()
    pairs = [(key.strip(), value.strip()) for key, _, value in (override.partition("=") for override in overrides)]
    # The name of the results is `base` already. Sorted by key alone: of two values of a key, the last one counts.
    changes = [f"{key}={value}" for key, value in sorted(pairs, key=lambda pair: pair[0]) if key != "name"]
    chosen = {"method": filters.methods, "pair": filters.pairs, "seed": filters.seeds}
    changes += [f"{key}={'+'.join(map(str, values))}" for key, values in chosen.items() if values]
    if not changes:
        return base
    readable = "--".join(changes).replace(":", "_")
    suited = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", readable)
    if suited != readable or len(suited) > LONGEST:
        suited = f"{suited[:LONGEST]}-{content_hash({'changes': changes}, 8)}"
    return f"{base}--{suited}"


def one_folder(name: str) -> str:
    """``name`` itself, if it is the name of a folder and no path."""
    if name != Path(name).name or name in {"", ".", ".."}:
        raise ResultsError(f"--report-name {name}: must be the name of one folder; --report-dir says where it is made")
    return name


def lost(report: Path, trials: pd.DataFrame) -> str:
    """What a report in this folder showed as finished that ``trials`` do not; empty where nothing is lost."""
    keys = ["teacher", "student", "label", "seed"]
    # Without types, a label such as "1" would be read as a number, and equal none of ours.
    types = dict.fromkeys(["id", *keys, "status"], str) | {"seed": int}
    try:
        earlier = pd.read_csv(report / "trials.csv", usecols=list(types), dtype=types, keep_default_na=False)
    except (OSError, ValueError):  # none, or not one of ours
        return ""
    ours = escape.without_formulas(trials)
    ours = ours[ours["status"].isin(FINISHED)]
    shown = set(ours[keys].itertuples(index=False, name=None))
    before = earlier[earlier["status"].isin(FINISHED) & ~earlier["id"].isin(ours["id"])]
    gone = [row for row in before[keys].itertuples(index=False) if tuple(row) not in shown]
    if not gone:
        return ""
    labels = wording.listing(list(dict.fromkeys(str(row.label) for row in gone)), 6)
    return (
        f"{report}: the report that was here showed {wording.plural(len(gone), 'finished trial')} that the new one "
        f"does not ({labels}); it was replaced, the results are kept"
    )
