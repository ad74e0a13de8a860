"""The verdict in words: who leads, what is tied with it, and on how many trials that rests."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from kdbench.report import wording
from kdbench.report.stats import PAIRS_FOR_INTERVAL, Estimate
from kdbench.report.study import Study


@dataclass(frozen=True)
class Verdict:
    """On one pair, or over all."""

    title: str
    pair: str
    """Empty for the verdict over all pairs."""
    sentences: tuple[str, ...]
    leader: str = ""
    """The leading label; empty where there is none."""


def verdicts(study: Study) -> list[Verdict]:
    """Over all pairs first where there are several, then pair by pair."""
    alone = [_on_pair(study, pair) for pair in study.pairs]
    return [*_over_pairs(study), *alone] if len(study.pairs) > 1 else alone


def _on_pair(study: Study, pair: str) -> Verdict:
    cells = study.pair(pair)
    title = study.title(pair)
    contenders = cells[(cells["n"] > 0) & (cells["diverged"] == 0)]
    if contenders.empty:
        count = int(cells["diverged"].sum())
        text = f"Nothing has come out of it yet but {count} diverged." if count else "No trial is done yet."
        return Verdict(title, pair, (text,))
    best = contenders.iloc[0]
    n = int(best["n"])
    score = wording.mean_std(best["top1_mean"], best["top1_std"], n)
    sentences = [f"{best['label']} {'leads with' if n > 1 else 'scores highest:'} {score} % top-1 (n={n})"]
    sentences[0] += _over_none(study, best)
    if n > 1:
        sentences.append(_ties(contenders))
    else:
        sentences.append("One seed gives no interval: which of these differences are chance cannot be said.")
    sentences += _against_none(study, cells)
    sentences += _diverged(cells)
    return Verdict(title, pair, tuple(sentences), str(best["label"]))


def _over_none(study: Study, best: pd.Series) -> str:
    if best["label"] == study.none:
        return ": no method is above the baseline, which learns from the labels alone."
    over = _difference(best, "gain_over_none")
    if over.mean is None:
        return f"; its gain over {study.none} is not known."
    bounds = wording.interval(over.low, over.high)
    return f", {wording.signed(over.mean)} {bounds + ' ' if bounds else ''}over {study.none}."


def _ties(contenders: pd.DataFrame) -> str:
    others = contenders.iloc[1:]
    if others.empty:
        return "Nothing else has finished all its seeds undiverged."
    tied = list(others.loc[others["tied_with_best"].fillna(False), "label"])
    unknown = list(others.loc[others["tied_with_best"].isna(), "label"])
    text = f"Tied with it: {wording.listing(tied)}." if tied else "Nothing is tied with it."
    if unknown:
        text += f" Not decidable for lack of common seeds: {wording.listing(unknown)}."
    return text


def _against_none(study: Study, cells: pd.DataFrame) -> list[str]:
    known = cells[cells["tied_with_none"].notna() & (cells["diverged"] == 0)]
    if known.empty:
        return []
    apart = known[~known["tied_with_none"].astype(bool)]
    above, below = apart[apart["gain_over_none"] > 0], apart[apart["gain_over_none"] < 0]
    text = f"Of {wording.plural(len(known), 'method')}, {len(above)} can be told to be above {study.none}"
    if len(above):
        text += f" ({wording.listing(list(above['label']), 8)})"
    text += f", {len(below)} below" + (f" ({wording.listing(list(below['label']), 8)})" if len(below) else "")
    return [f"{text}, {len(known) - len(apart)} not to differ from it."]


def _diverged(cells: pd.DataFrame) -> list[str]:
    rows = cells[cells["diverged"] > 0]
    parts = [f"{row.label} in {row.diverged} of {row.n + row.diverged}" for row in rows.itertuples()]
    return [f"Diverged, and therefore ranked last: {wording.listing(parts)}."] if parts else []


def _over_pairs(study: Study) -> list[Verdict]:
    whole = study.overall
    ranked = [standing for standing in whole.standings if standing.rank is not None]
    title = "Over all pairs"
    if len(ranked) < 2:
        return [Verdict(title, "", ("No two methods have results on a common pair yet.",))]
    first = ranked[0]
    assert first.rank is not None
    bounds = "" if first.rank.low is None else f" [{first.rank.low:.2f}, {first.rank.high:.2f}]"
    sentences = [
        f"{first.label} has the best mean rank, {first.rank.mean:.2f}{bounds} of {len(whole.methods)} methods "
        f"over {wording.plural(len(whole.pairs), 'pair')}."
    ]
    if first.gain_over_none.mean is not None:
        over = first.gain_over_none
        interval = wording.interval(over.low, over.high)
        sentences.append(
            f"Its mean gain over {study.none} is {wording.signed(over.mean)} points"
            f"{' ' + interval if interval else ''} (n={wording.plural(over.n, 'pair')})."
        )
    sentences.append(f"It leads, or is tied with the leader, on {first.best} of {wording.plural(first.pairs, 'pair')}.")
    if whole.comparison is not None:
        near = [
            s.label
            for s in ranked[1:]
            if s.rank is not None and s.rank.mean - first.rank.mean < whole.comparison.critical_difference
        ]
        sentences.append(
            f"By Nemenyi's test (critical difference {whole.comparison.critical_difference:.2f}) "
            + (
                f"it cannot be told apart from {wording.listing(near, 8)}."
                if near
                else "it stands apart from all others."
            )
        )
    elif len(whole.pairs) < PAIRS_FOR_INTERVAL:
        sentences.append(
            f"Fewer than {PAIRS_FOR_INTERVAL} pairs: this speaks of these pairs, and is no claim about others."
        )
    if whole.partial:
        sentences.append("Some trials are still missing, so this may change.")
    return [Verdict(title, "", tuple(sentences), first.label)]


def _difference(row: pd.Series, name: str) -> Estimate:
    def value(key: str) -> float | None:
        return None if pd.isna(row[key]) else float(row[key])

    return Estimate(int(row[f"{name}_n"]), value(name), None, value(f"{name}_low"), value(f"{name}_high"))
