"""The verdict in words: who leads, what is tied with it, and on how many trials that rests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdbench.report import wording
from kdbench.report.stats import PAIRS_FOR_INTERVAL
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


@dataclass(frozen=True)
class Standings:
    """Who stands where on one pair; labels, best first."""

    pair: str
    title: str
    best: Mapping[str, Any] | None
    """The leader's row of the leaderboard; None where no method has finished undiverged."""
    tied: tuple[str, ...]
    undecided: tuple[str, ...]
    """Whose difference to the leader has no interval."""
    above: tuple[str, ...]
    """Above the baseline: the interval of the gain lies above 0."""
    level: tuple[str, ...]
    below: tuple[str, ...]
    unclear: tuple[str, ...]
    """Whose gain over the baseline has no interval."""
    diverged: tuple[str, ...]
    """``label in 1 of 3``."""


def verdicts(study: Study) -> list[Verdict]:
    """Over all pairs first where there are several, then pair by pair."""
    alone = [_on_pair(study, standings(study, pair)) for pair in study.pairs]
    return [*_over_pairs(study), *alone] if len(study.pairs) > 1 else alone


def standings(study: Study, pair: str) -> Standings:
    """Sort a pair's methods by what can be said of them."""
    cells = study.pair(pair)
    contenders = cells[(cells["n"] > 0) & (cells["diverged"] == 0)]
    others = contenders.iloc[1:]
    known = contenders[contenders["tied_with_none"].notna()]
    level = known["tied_with_none"].astype(bool)
    apart = known[~level]
    unclear = contenders[contenders["tied_with_none"].isna() & (contenders["label"] != study.none)]
    diverged = cells[cells["diverged"] > 0]
    return Standings(
        pair=pair,
        title=study.title(pair),
        best=None if contenders.empty else {str(key): value for key, value in contenders.iloc[0].items()},
        tied=tuple(others.loc[others["tied_with_best"].fillna(False).astype(bool), "label"]),
        undecided=tuple(others.loc[others["tied_with_best"].isna(), "label"]),
        above=tuple(apart.loc[apart["gain_over_none"] > 0, "label"]),
        level=tuple(known.loc[level, "label"]),
        below=tuple(apart.loc[apart["gain_over_none"] < 0, "label"]),
        unclear=tuple(unclear["label"]),
        diverged=tuple(f"{row.label} in {row.diverged} of {row.n + row.diverged}" for row in diverged.itertuples()),
    )


def _on_pair(study: Study, found: Standings) -> Verdict:
    best = found.best
    lost = f"Diverged, and therefore ranked last: {wording.listing(found.diverged)}." if found.diverged else ""
    if best is None:
        return Verdict(found.title, found.pair, (lost or "No trial is done yet.",))
    score = wording.mean_std(best["top1_mean"], best["top1_std"])
    n = int(best["n"])
    lead = f"{best['label']} {'leads with' if n > 1 else 'scores highest:'} {score} % top-1 (n={n})"
    sentences = [lead + _over_none(study, best)]
    if n == 1:
        sentences.append("One seed gives no interval: which of these differences are chance cannot be said.")
    else:
        sentences.append(f"Tied with it: {wording.listing(found.tied)}." if found.tied else "Nothing is tied with it.")
        if found.undecided:
            why = "for lack of common seeds, or because their differences do not vary"
            sentences.append(f"Not decidable, {why}: {wording.listing(found.undecided)}.")
    known = len(found.above) + len(found.level) + len(found.below)
    if known:
        known += len(found.unclear)
        unclear = f"; of {len(found.unclear)} it cannot be said{_named(found.unclear)}" if found.unclear else ""
        methods = wording.plural(known, "method") + f" besides {study.none}"
        sentences.append(
            f"Of {methods}, {len(found.above)} can be told to be above it{_named(found.above)}, "
            f"{len(found.below)} below{_named(found.below)}, {len(found.level)} not to differ from it{unclear}."
        )
    return Verdict(found.title, found.pair, (*sentences, lost) if lost else tuple(sentences), str(best["label"]))


def _named(labels: Sequence[str]) -> str:
    return f" ({wording.listing(labels, 8)})" if labels else ""


def _over_none(study: Study, best: Mapping[str, Any]) -> str:
    if best["label"] == study.none:
        return ": no method is above the baseline, which learns from the labels alone."
    if pd.isna(best["gain_over_none"]):
        return f"; its gain over {study.none} is not known."
    bounds = wording.interval(best["gain_over_none_low"], best["gain_over_none_high"])
    return f", {wording.signed(best['gain_over_none'])} {bounds + ' ' if bounds else ''}over {study.none}."


def _over_pairs(study: Study) -> list[Verdict]:
    whole = study.overall
    ranked = [standing for standing in whole.standings if standing.rank is not None]
    title = "Over all pairs"
    if len(ranked) < 2:
        return [Verdict(title, "", ("No two methods have results on a common pair yet.",))]
    if len(whole.pairs) < 2:
        only = study.title(whole.pairs[0])
        return [Verdict(title, "", (f"So far most methods have all their results on {only} alone; see there.",))]
    first = ranked[0]
    assert first.rank is not None
    bounds = "" if first.rank.low is None else f" [{first.rank.low:.2f}, {first.rank.high:.2f}]"
    level = [s.label for s in ranked[1:] if s.rank is not None and math.isclose(s.rank.mean, first.rank.mean)]
    also = f"; so {'have' if len(level) > 1 else 'has'} {wording.listing(level)}" if level else ""
    sentences = [
        f"{first.label} has the best mean rank, {first.rank.mean:.2f}{bounds} of {len(whole.methods)} methods "
        f"over {wording.plural(len(whole.pairs), 'pair')}{also}."
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
        sentences.append("Trials are still missing in this comparison, so it may change.")
    return [Verdict(title, "", tuple(sentences), first.label)]
