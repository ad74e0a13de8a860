"""The verdict in words: the highest mean, which differences to it are resolved, and on how many trials that rests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdbench.report import stats, wording
from kdbench.report.leaderboard import is_complete
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
    """What can be concluded on one pair; labels of ranked methods, best first."""

    pair: str
    title: str
    best: Mapping[str, Any] | None
    """The row of the leaderboard with the highest mean; None where no ranked method has finished undiverged."""
    others: int
    """How many ranked methods without a diverged trial there are besides the best."""
    shared: tuple[str, ...]
    """Who has the same mean."""
    unresolved: tuple[str, ...]
    """Whose difference to the best has an interval that contains 0."""
    undecided: tuple[str, ...]
    """Whose difference to the best has no interval."""
    above: tuple[str, ...]
    """The interval of the gain over the baseline lies above 0."""
    level: tuple[str, ...]
    """The interval of the gain over the baseline contains 0."""
    below: tuple[str, ...]
    unclear: tuple[str, ...]
    """Whose gain over the baseline has no interval."""
    diverged: tuple[str, ...]
    """``label in 1 of 3``."""
    incomplete: tuple[str, ...]
    """Not ranked, as not all trials have an outcome: ``label (1 of 3)``."""
    seeds: str
    """The seeds of the ranks where these are not all of the suite's, as in a run that has just begun."""


def verdicts(study: Study) -> list[Verdict]:
    """Over all pairs first where there are several, then pair by pair."""
    alone = [_on_pair(study, standings(study, pair)) for pair in study.pairs]
    return [*_over_pairs(study), *alone] if len(study.pairs) > 1 else alone


def standings(study: Study, pair: str) -> Standings:
    """Sort a pair's methods by what their intervals support."""
    cells = study.pair(pair)
    ranked = cells[cells["rank"].notna()]
    contenders = ranked[(ranked["n"] > 0) & (ranked["diverged"] == 0)]
    others = contenders.iloc[1:]
    shared = others["rank"] == contenders["rank"].min()
    gain = study.reference.gain
    known = contenders[contenders[f"{gain}_resolved"].notna()]
    apart = known[f"{gain}_resolved"].astype(bool)
    unclear = contenders[contenders[f"{gain}_resolved"].isna() & (contenders["label"] != study.reference.label)]
    diverged = cells[cells["diverged"] > 0]
    begun = cells[cells["n"] + cells["diverged"] > 0]
    incomplete = begun[begun["rank"].isna()]
    partial = any(not is_complete(row) for row in ranked.to_dict("records"))
    return Standings(
        pair=pair,
        title=study.title(pair),
        best=None if contenders.empty else _best(study, contenders.iloc[0]),
        others=len(others),
        shared=tuple(others.loc[shared, "label"]),
        unresolved=tuple(others.loc[~others["behind_best_resolved"].fillna(True).astype(bool), "label"]),
        undecided=tuple(others.loc[others["behind_best_resolved"].isna(), "label"]),
        above=tuple(known.loc[apart & (known[gain] > 0), "label"]),
        level=tuple(known.loc[~apart, "label"]),
        below=tuple(known.loc[apart & (known[gain] < 0), "label"]),
        unclear=tuple(unclear["label"]),
        diverged=tuple(f"{row.label} in {row.diverged} of {row.n + row.diverged}" for row in diverged.itertuples()),
        incomplete=tuple(f"{row.label} ({row.n + row.diverged} of {row.planned})" for row in incomplete.itertuples()),
        seeds=wording.listing(str(ranked["ranked_seeds"].iloc[0]).split()) if partial else "",
    )


def _best(study: Study, cell: pd.Series[Any]) -> dict[str, Any]:
    """The row of the leaderboard, its mean over the seeds on which its rank rests."""
    done = study.done(cell["pair"])
    seeds = [int(seed) for seed in cell["ranked_seeds"].split()]
    ranked = stats.estimate(done.loc[(done["label"] == cell["label"]) & done["seed"].isin(seeds), "top1"])
    row = {str(key): value for key, value in cell.items()}
    return row | {"n": ranked.n, "top1_mean": ranked.mean, "top1_std": ranked.std}


def _on_pair(study: Study, found: Standings) -> Verdict:
    notes = incompleteness(found)
    if found.diverged:
        notes.append(f"Diverged, and therefore ranked last: {wording.listing(found.diverged)}.")
    if found.best is None:
        return Verdict(found.title, found.pair, tuple(notes or ["No trial is done yet."]))
    sentences = [*_lead(study, found, found.best), *_against_reference(study, found), *notes]
    return Verdict(found.title, found.pair, tuple(sentences), str(found.best["label"]))


def incompleteness(found: Standings) -> list[str]:
    """What a pair's ranks leave out, in sentences."""
    notes = []
    if found.seeds:
        notes.append(
            f"Incomplete: ranks and differences are over the seeds that the ranked methods share ({found.seeds})."
        )
    if found.incomplete:
        notes.append(f"Incomplete, and therefore not ranked: {wording.listing(found.incomplete)}.")
    return notes


def _lead(study: Study, found: Standings, best: Mapping[str, Any]) -> list[str]:
    """Who has the highest mean, and what is known of the differences to it."""
    n = int(best["n"])
    score = f"{wording.mean_std(best['top1_mean'], best['top1_std'])} % top-1 (n={n})"
    who = wording.listing([str(best["label"]), *found.shared])
    what = f"{'share' if found.shared else 'has'} the highest {'mean' if n > 1 else 'score'}"
    sentences = [f"{who} {what}, {score}{_over_reference(study, best)}"]
    if n == 1:
        return [*sentences, "One seed gives no interval: no difference is resolved."]
    if found.unresolved:
        sentences.append(
            f"Not resolved (the interval of the difference to it contains 0): {wording.listing(found.unresolved)}."
        )
    elif found.others and not found.undecided:
        which = " without a diverged trial" if found.diverged else ""
        sentences.append(f"Its difference to each other ranked method{which} is resolved.")
    if found.undecided:
        why = "too few common seeds, or equal differences at every seed"
        sentences.append(f"Without an interval ({why}): {wording.listing(found.undecided)}.")
    return sentences


def _against_reference(study: Study, found: Standings) -> list[str]:
    if not (found.above or found.level or found.below):
        return []
    methods = len(found.above) + len(found.level) + len(found.below) + len(found.unclear)
    over = " over these seeds" if found.seeds else ""
    unclear = f", {len(found.unclear)} without an interval{_named(found.unclear)}" if found.unclear else ""
    return [
        f"Against {study.reference.label}{over}, of {wording.plural(methods, 'method')}: "
        f"{len(found.above)} above{_named(found.above)}, "
        f"{len(found.below)} below{_named(found.below)}, {len(found.level)} not resolved{_named(found.level)}{unclear}."
    ]


def _named(labels: Sequence[str]) -> str:
    return f" ({wording.listing(labels, 8)})" if labels else ""


def _over_reference(study: Study, best: Mapping[str, Any]) -> str:
    label, gain = study.reference.label, study.reference.gain
    if best["label"] == label:
        which = ", which learns from the labels alone" if best["method"] == "none" else ""
        return f": no method's mean is above that of the baseline{which}."
    if pd.isna(best[gain]):
        return f"; its gain over {label} is not known."
    bounds = wording.interval(best[f"{gain}_low"], best[f"{gain}_high"])
    other = "" if best[f"{gain}_n"] == best["n"] else f"n={best[f'{gain}_n']} "
    return f", {wording.signed(best[gain])} {bounds + ' ' if bounds else ''}{other}over {label}."


def _over_pairs(study: Study) -> list[Verdict]:
    whole = study.overall
    ranked = [standing for standing in whole.standings if standing.rank is not None]
    title = "Over all pairs"
    if len(ranked) < 2:
        return [Verdict(title, "", ("No two methods have results on a common pair yet.",))]
    if len(whole.pairs) < 2:
        only = study.title(whole.pairs[0])
        return [Verdict(title, "", (f"Incomplete: only on {only} can methods be compared so far; see there.",))]
    first = ranked[0]
    assert first.rank is not None
    bounds = "" if first.rank.low is None else f" [{first.rank.low:.2f}, {first.rank.high:.2f}]"
    level = [s.label for s in ranked[1:] if s.rank is not None and math.isclose(s.rank.mean, first.rank.mean)]
    also = f"; so {'have' if len(level) > 1 else 'has'} {wording.listing(level)}" if level else ""
    sentences = [
        f"{first.label} has the best mean rank, {first.rank.mean:.2f}{bounds} of {len(whole.methods)} methods "
        f"over {wording.plural(len(whole.pairs), 'pair')}{also}."
    ]
    if first.gain.mean is not None:
        over = first.gain
        interval = wording.interval(over.low, over.high)
        sentences.append(
            f"Its mean gain over {study.reference.label} is {wording.signed(over.mean)} points"
            f"{' ' + interval if interval else ''} (n={wording.plural(over.n, 'pair')})."
        )
    sentences.append(
        "It has the highest mean, or is not resolved from it, on "
        f"{first.best} of {wording.plural(first.pairs, 'pair')}."
    )
    if whole.comparison is not None:
        near = [
            s.label
            for s in ranked[1:]
            if s.rank is not None and s.rank.mean - first.rank.mean < whole.comparison.critical_difference
        ]
        sentences.append(
            f"By Nemenyi's test (critical difference {whole.comparison.critical_difference:.2f}) "
            + (
                f"its mean rank is not resolved from that of {wording.listing(near, 8)}."
                if near
                else "its mean rank is resolved from all others."
            )
        )
    elif len(whole.pairs) < PAIRS_FOR_INTERVAL:
        sentences.append(
            f"Fewer than {PAIRS_FOR_INTERVAL} pairs: this speaks of these pairs, and is no claim about others."
        )
    if whole.partial:
        sentences.append("Incomplete: on a pair, ranks and gains are over the seeds that the ranked methods share.")
    return [Verdict(title, "", tuple(sentences), first.label)]
