"""Names of report folders: a report of part of a suite never overwrites the report of the whole suite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import ResultsError
from kdbench.report import escape, wording
from kdbench.status import FINISHED
from kdbench.suite.filters import Filters
from kdbench.suite.plan import content_hash
from kdbench.suite.tables import split_override

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 80


def report_name(base: str, overrides: Sequence[str] = (), filters: Filters | None = None) -> str:
    """``base`` with overrides and filters: ``digits--recipe.epochs=2--seed=0``.

    A hash is appended if the name is too long or contains other characters. Spaces around ``=`` and the order of the
    overrides do not matter.

    >>> report_name("digits", ["recipe.epochs=2"], Filters(methods=["none", "kd"]))
    'digits--recipe.epochs=2--method=none+kd'
    """
    filters = filters or Filters()
    pairs = [(key, value.strip()) for key, value in map(split_override, overrides)]
    # `base` is already the name of the results. Sort by key only: of two values of a key, the last one applies.
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
    """``name`` itself, if it is a folder name and not a path."""
    if name != Path(name).name or name in {"", ".", ".."}:
        raise ResultsError(
            f"--report-name {name}: must be a folder name, not a path; --report-dir sets the parent folder"
        )
    return name


def lost(report: Path, trials: pd.DataFrame) -> str:
    """A message about finished trials in the previous report of this folder that ``trials`` lack; empty if none."""
    import pandas as pd

    keys = ["teacher", "student", "label", "seed"]
    # Without types, a label such as "1" would be read as a number and match no label.
    types = dict.fromkeys(["id", *keys, "status"], str) | {"seed": int}
    try:
        earlier = pd.read_csv(report / "trials.csv", usecols=list(types), dtype=types, keep_default_na=False)
    except (OSError, ValueError):  # no report, or not written by kdbench
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
        f"{report}: the previous report showed {wording.plural(len(gone), 'finished trial')} that the new one does not "
        f"({labels}); it was replaced, the results are kept"
    )
