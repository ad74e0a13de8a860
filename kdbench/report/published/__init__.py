"""Published results for comparison, each with its source and protocol.

``figures.csv``, one row per result: ``dataset``, ``teacher`` and ``student`` by this project's model names,
``method`` by its registered name where it has one, ``top1`` in percent, ``std`` and ``n`` where the source gives
them, the source's own ``teacher_top1``, ``source``, ``protocol`` (the reported epoch), ``note``, ``url``.
Results that a source copied from another are excluded. Sources are never mixed: they differ in teachers, recipes and
reported epochs.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pandas as pd

COLUMNS = (
    "source", "protocol", "teacher", "student", "pair", "label", "method", "n", "top1_mean", "top1_std", "teacher_top1",
    "published", "published_std", "published_n", "published_teacher_top1", "difference", "note", "url",
)  # fmt: skip
UNSTATED = "not stated"


@cache
def figures() -> pd.DataFrame:
    """All published results, one row each."""
    with (files(__package__) / "figures.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file, keep_default_na=False, dtype=str)
    for name in ("top1", "std", "n", "teacher_top1"):
        frame[name] = pd.to_numeric(frame[name].replace("", None))
    return frame


def comparison(cells: pd.DataFrame, data: str) -> pd.DataFrame:
    """Our results and published ones with the same data set, pair and method: one row per published result.

    Columns: :data:`COLUMNS`. ``cells``: the leaderboard; ``data``: the name of its data set. ``difference`` is ours
    minus theirs, in points. Sources with the most results come first.
    """
    theirs = figures()
    theirs = theirs[theirs["dataset"].map(_plain) == _plain(data)]
    ours = cells[cells["n"] > 0]
    keys = ["_teacher", "_student", "method"]
    joined = _keyed(ours).merge(
        _keyed(theirs).rename(
            columns={
                "top1": "published",
                "std": "published_std",
                "n": "published_n",
                "teacher_top1": "published_teacher_top1",
            }
        ),
        on=keys,
        suffixes=("", "_theirs"),
    )
    joined["difference"] = joined["top1_mean"] - joined["published"]
    sizes = joined.groupby("source")["published"].transform("size")
    order = joined.assign(_size=sizes, _row=range(len(joined))).sort_values(
        ["_size", "source", "_row"], ascending=[False, True, True]
    )
    return order.reindex(columns=list(COLUMNS)).reset_index(drop=True)


def _keyed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(_teacher=frame["teacher"].map(_model), _student=frame["student"].map(_model))


def _model(name: str) -> str:
    # The same network from another library is the same model.
    return name.rsplit(":", 1)[-1].lower()


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
