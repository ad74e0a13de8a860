"""The verdict in sentences: the highest mean, which differences to it are inconclusive, and the number of trials."""

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
    """For one pair, or for all pairs."""

    title: str
    pair: str
    """Empty for the verdict on all pairs."""
    sentences: tuple[str, ...]
    leader: str = ""
    """The label with the highest mean or best mean rank; empty if there is none."""


@dataclass(frozen=True)
class Standings:
    """What the results of one pair support; labels of ranked methods, best first."""

    pair: str
    title: str
    best: Mapping[str, Any] | None
    """The leaderboard row with the highest mean; None if every ranked method has a diverged trial."""
    others: int
    """Number of other ranked methods without a diverged trial."""
    shared: tuple[str, ...]
    """Labels with the same mean as the best."""
    unresolved: tuple[str, ...]
    """Labels whose difference to the best is inconclusive: its interval contains 0."""
    undecided: tuple[str, ...]
    """Labels whose difference to the best has no interval."""
    better: tuple[str, ...]
    """Labels whose gain over the baseline has an interval above 0."""
    inconclusive: tuple[str, ...]
    """Labels whose gain over the baseline has an interval that contains 0."""
    worse: tuple[str, ...]
    """Labels whose gain over the baseline has an interval below 0."""
    unclear: tuple[str, ...]
    """Labels whose gain over the baseline has no interval."""
    diverged: tuple[str, ...]
    """``label in 1 of 3``."""
    incomplete: tuple[str, ...]
    """Not ranked, because trials are missing: ``label (1 of 3)``."""
    seeds: str
    """The seeds used for ranks; empty if ranks use all seeds of the suite."""


def verdicts(study: Study) -> list[Verdict]:
    """With several pairs, the verdict on all pairs first; then one per pair."""
    alone = [_on_pair(study, standings(study, pair)) for pair in study.pairs]
    return [*_over_pairs(study), *alone] if len(study.pairs) > 1 else alone


def standings(study: Study, pair: str) -> Standings:
    """Group the methods of a pair by what their intervals support; computed once per study."""
    if pair not in study.standings:
        study.standings[pair] = _standings(study, pair)
    return study.standings[pair]


def _standings(study: Study, pair: str) -> Standings:
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
        better=tuple(known.loc[apart & (known[gain] > 0), "label"]),
        inconclusive=tuple(known.loc[~apart, "label"]),
        worse=tuple(known.loc[apart & (known[gain] < 0), "label"]),
        unclear=tuple(unclear["label"]),
        diverged=tuple(f"{row.label} in {row.diverged} of {row.n + row.diverged}" for row in diverged.itertuples()),
        incomplete=tuple(f"{row.label} ({row.n + row.diverged} of {row.planned})" for row in incomplete.itertuples()),
        seeds=wording.listing(str(ranked["ranked_seeds"].iloc[0]).split()) if partial else "",
    )


def _best(study: Study, cell: pd.Series[Any]) -> dict[str, Any]:
    """The leaderboard row, with the mean over the seeds used for its rank."""
    done = study.done(cell["pair"])
    seeds = [int(seed) for seed in cell["ranked_seeds"].split()]
    ranked = stats.estimate(done.loc[(done["label"] == cell["label"]) & done["seed"].isin(seeds), "top1"])
    row = {str(key): value for key, value in cell.items()}
    return row | {"n": ranked.n, "top1_mean": ranked.mean, "top1_std": ranked.std}


def _on_pair(study: Study, found: Standings) -> Verdict:
    notes = incompleteness(found)
    if found.diverged:
        notes.append(f"Diverged, ranked last: {wording.listing(found.diverged)}.")
    if found.best is None:
        return Verdict(found.title, found.pair, tuple(notes or ["No trial is done yet."]))
    sentences = [*_lead(study, found, found.best), *_against_reference(study, found), *notes]
    return Verdict(found.title, found.pair, tuple(sentences), str(found.best["label"]))


def incompleteness(found: Standings) -> list[str]:
    """Sentences about what is missing from the ranks of a pair."""
    notes = []
    if found.seeds:
        notes.append(
            f"Incomplete: ranks and differences use only the seeds that all ranked methods have ({found.seeds})."
        )
    if found.incomplete:
        notes.append(f"Incomplete, not ranked: {wording.listing(found.incomplete)}.")
    return notes


def _lead(study: Study, found: Standings, best: Mapping[str, Any]) -> list[str]:
    """The method with the highest mean, and what the intervals of the differences to it support."""
    n = int(best["n"])
    score = f"{wording.mean_std(best['top1_mean'], best['top1_std'])} % top-1 (n={n})"
    who = wording.listing([str(best["label"]), *found.shared])
    what = f"{'share' if found.shared else 'has'} the highest {'mean' if n > 1 else 'score'}"
    sentences = [f"{who} {what}: {score}{_over_reference(study, best)}"]
    if n == 1:
        return [*sentences, "One seed gives no interval: differences cannot be separated from noise."]
    if found.unresolved:
        sentences.append(
            f"Inconclusive difference to it (the interval contains 0): {wording.listing(found.unresolved)}."
        )
    elif found.others and not found.undecided:
        which = " without a diverged trial" if found.diverged else ""
        sentences.append(f"The interval of the difference to it excludes 0 for each other ranked method{which}.")
    if found.undecided:
        why = "fewer than two common seeds, or the same difference at every seed"
        sentences.append(f"Difference to it without an interval ({why}): {wording.listing(found.undecided)}.")
    return sentences


def _against_reference(study: Study, found: Standings) -> list[str]:
    if not (found.better or found.inconclusive or found.worse):
        return []
    methods = len(found.better) + len(found.inconclusive) + len(found.worse) + len(found.unclear)
    over = " on these seeds" if found.seeds else ""
    why = ": the interval contains 0" if found.inconclusive else ""
    unclear = f", {len(found.unclear)} without an interval{_named(found.unclear)}" if found.unclear else ""
    return [
        f"Against {study.reference.label}{over}, {wording.plural(methods, 'method')} "
        f"({stats.CONFIDENCE:.0%} interval each): "
        f"{len(found.better)} better{_named(found.better)}, {len(found.worse)} worse{_named(found.worse)}, "
        f"{len(found.inconclusive)} inconclusive{why}{_named(found.inconclusive)}{unclear}."
    ]


def _named(labels: Sequence[str]) -> str:
    return f" ({wording.listing(labels, 8)})" if labels else ""


def _over_reference(study: Study, best: Mapping[str, Any]) -> str:
    label, gain = study.reference.label, study.reference.gain
    if best["label"] == label:
        which = ", which is trained on labels only" if best["method"] == "none" else ""
        return f": no method has a higher mean than the baseline{which}."
    if pd.isna(best[gain]):
        return f"; its gain over {label} is unknown."
    bounds = wording.interval(best[f"{gain}_low"], best[f"{gain}_high"])
    other = "" if best[f"{gain}_n"] == best["n"] else f"n={best[f'{gain}_n']} "
    return f", {wording.signed(best[gain])} {bounds + ' ' if bounds else ''}{other}over {label}."


def _over_pairs(study: Study) -> list[Verdict]:
    whole = study.overall
    ranked = [standing for standing in whole.standings if standing.rank is not None]
    title = "All pairs"
    if len(ranked) < 2:
        return [Verdict(title, "", ("No two methods have results on a common pair yet.",))]
    if len(whole.pairs) < 2:
        only = study.title(whole.pairs[0])
        return [Verdict(title, "", (f"Incomplete: methods can be compared only on {only} so far.",))]
    first = ranked[0]
    assert first.rank is not None
    bounds = "" if first.rank.low is None else f" [{first.rank.low:.2f}, {first.rank.high:.2f}]"
    tied = [s.label for s in ranked[1:] if s.rank is not None and math.isclose(s.rank.mean, first.rank.mean)]
    have = "have" if len(tied) > 1 else "has"
    also = f"; {wording.listing(tied)} {have} the same mean rank" if tied else ""
    sentences = [
        f"{first.label} has the best mean rank: {first.rank.mean:.2f}{bounds} "
        f"({wording.plural(len(whole.methods), 'method')}, {wording.plural(len(whole.pairs), 'pair')}){also}."
    ]
    if first.gain.mean is not None:
        over = first.gain
        interval = wording.interval(over.low, over.high)
        sentences.append(
            f"Its mean gain over {study.reference.label} is {wording.signed(over.mean)} points"
            f"{' ' + interval if interval else ''} (n={wording.plural(over.n, 'pair')})."
        )
    sentences.append(
        f"On {first.best} of {wording.plural(first.pairs, 'pair')} it has the highest mean, or its difference to the "
        "highest mean is inconclusive."
    )
    if whole.comparison is not None:
        near = [
            s.label
            for s in ranked[1:]
            if s.rank is not None and s.rank.mean - first.rank.mean < whole.comparison.critical_difference
        ]
        sentences.append(
            f"Nemenyi's test (critical difference {whole.comparison.critical_difference:.2f} "
            f"at {stats.CONFIDENCE:.0%}): "
            + (
                f"the difference in mean rank to {wording.listing(near, 8)} is inconclusive."
                if near
                else "its mean rank differs significantly from all others."
            )
        )
    elif len(whole.pairs) < PAIRS_FOR_INTERVAL:
        sentences.append(f"Fewer than {PAIRS_FOR_INTERVAL} pairs: the ranking does not generalise beyond these pairs.")
    if whole.partial:
        sentences.append("Incomplete: ranks and gains on a pair use only the seeds that all its ranked methods have.")
    return [Verdict(title, "", tuple(sentences), first.label)]
