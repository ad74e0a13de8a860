"""The verdict in sentences: the highest mean, what may equally be the best, and what differs from the baseline.

A sentence claims what would hold in a repetition of the study: see ``docs/statistics.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from kdbench.report import stats, wording
from kdbench.report.leaderboard import Word, is_complete
from kdbench.report.stats import PAIRS_FOR_INTERVAL, Noise
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
    """Labels that may equally be the best method."""
    undecided: tuple[str, ...]
    """Labels of which that is unknown."""
    better: tuple[str, ...]
    """Labels whose gain over the baseline has an interval above 0; the intervals hold for all labels at once."""
    inconclusive: tuple[str, ...]
    """Labels whose gain over the baseline has an interval that contains 0."""
    worse: tuple[str, ...]
    """Labels whose gain over the baseline has an interval below 0."""
    unclear: tuple[str, ...]
    """Labels whose gain over the baseline has no interval."""
    same: tuple[tuple[str, ...], ...]
    """Groups of labels whose students are the same at all seeds, weight for weight."""
    diverged: tuple[str, ...]
    """``label in 1 of 3``."""
    incomplete: tuple[str, ...]
    """Not ranked, because trials are missing: ``label (1 of 3)``."""
    noise: Noise | None
    """The noise of the ranked methods without a diverged trial."""
    resolvable: float | None
    """The gain over the baseline, in points, that this number of seeds resolves with 80 % probability."""
    compared_seeds: int
    """The number of seeds over which means are compared."""
    seeds_needed: int | None
    """The number of seeds that so resolves a gain of :data:`stats.EQUIVALENCE`; None if it is unknown or very large."""
    own_noise: tuple[str, ...]
    """Labels that vary more than the others between seeds; their differences have intervals of their own."""
    new_teachers: bool
    """Whether each seed has a teacher of its own."""
    seeds: str
    """The seeds used for ranks; empty if ranks use all seeds of the suite."""


def verdicts(study: Study) -> list[Verdict]:
    """With several pairs, the verdict on all pairs first; then one per pair."""
    alone = [_on_pair(study, standings(study, pair)) for pair in study.pairs]
    first, *others = [*_over_pairs(study), *alone] if len(study.pairs) > 1 else alone
    return [replace(first, sentences=(*first.sentences, *_validity(study))), *others]


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
    same = study.same_students(pair)
    twins = {label for label, one in same.items() if one == same.get(study.reference.label)}
    known = contenders[contenders[f"{gain}_resolved"].notna() & ~contenders["label"].isin(twins)]
    apart = known[f"{gain}_resolved"].astype(bool)
    unclear = contenders[
        contenders[f"{gain}_resolved"].isna() & ~contenders["label"].isin({*twins, study.reference.label})
    ]
    diverged = cells[cells["diverged"] > 0]
    begun = cells[cells["n"] + cells["diverged"] > 0]
    incomplete = begun[begun["rank"].isna()]
    partial = any(not is_complete(row) for row in ranked.to_dict("records"))
    noise = study.noise(pair)
    comparisons = max(1, len({same.get(label, label) for label in contenders["label"]}) - 1)
    seeds = len(str(contenders["ranked_seeds"].iloc[0]).split()) if len(contenders) else 0
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
        same=_groups(same),
        diverged=tuple(f"{row.label} in {row.diverged} of {row.n + row.diverged}" for row in diverged.itertuples()),
        incomplete=tuple(f"{row.label} ({row.n + row.diverged} of {row.planned})" for row in incomplete.itertuples()),
        noise=noise,
        resolvable=None if noise is None else stats.resolvable(noise, seeds, comparisons),
        compared_seeds=seeds,
        seeds_needed=None if noise is None else stats.seeds_needed(noise, stats.EQUIVALENCE, comparisons),
        own_noise=() if noise is None else tuple(noise.own),
        new_teachers=study.has_a_teacher_for_each_seed(pair),
        seeds=wording.listing(str(ranked["ranked_seeds"].iloc[0]).split()) if partial else "",
    )


def _groups(same: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, list[str]] = {}
    for label, one in same.items():
        groups.setdefault(one, []).append(label)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _best(study: Study, cell: pd.Series[Any]) -> dict[str, Any]:
    """The leaderboard row, with the mean over the seeds used for its rank."""
    done = study.done(cell["pair"])
    seeds = [int(seed) for seed in cell["ranked_seeds"].split()]
    ranked = stats.estimate(done.loc[(done["label"] == cell["label"]) & done["seed"].isin(seeds), "top1"])
    row = {str(key): value for key, value in cell.items()}
    return row | {"n": ranked.n, "top1_mean": ranked.mean, "top1_std": ranked.std}


def _on_pair(study: Study, found: Standings) -> Verdict:
    notes = notes_on(found)
    if found.diverged:
        notes.append(f"Diverged, ranked last: {wording.listing(found.diverged)}.")
    if found.best is None:
        return Verdict(found.title, found.pair, tuple(notes or ["No trial is done yet."]))
    sentences = [*_lead(study, found, found.best), *_against_reference(study, found), *notes]
    return Verdict(found.title, found.pair, tuple(sentences), str(found.best["label"]))


def notes_on(found: Standings) -> list[str]:
    """Sentences about what is missing from the ranks of a pair, and about students that are the same."""
    notes = []
    if found.seeds:
        notes.append(
            f"Incomplete: ranks and differences use only the seeds that all ranked methods have ({found.seeds})."
        )
    if found.incomplete:
        notes.append(f"Incomplete, not ranked: {wording.listing(found.incomplete)}.")
    notes += [
        f"{wording.listing(group)} have the same weights at each seed: their differences are exactly 0."
        for group in found.same
    ]
    return notes


def _lead(study: Study, found: Standings, best: Mapping[str, Any]) -> list[str]:
    """The method with the highest mean, and which ones may equally be the best."""
    n = int(best["n"])
    score = f"{wording.mean_std(best['top1_mean'], best['top1_std'])} % (n={n})"
    who = wording.listing([str(best["label"]), *found.shared])
    sentences = [f"Highest {'mean' if n > 1 else 'score'} here: {who}, {score}{_over_reference(study, best)}"]
    if found.others and best["label"] != study.reference.label and not pd.isna(best[study.reference.gain]):
        sentences.append(f"Picked as the highest of {found.others + 1}, so this gain is probably too large.")
    if n == 1:
        return [*sentences, "One seed gives no interval: differences cannot be separated from noise."]
    if found.unresolved:
        which = wording.listing(found.unresolved)
        sentences.append(f"May equally be the best ({stats.CONFIDENCE:.0%}, all methods at once): {which}.")
    elif found.others and not found.undecided:
        which = " without a diverged trial" if found.diverged else ""
        sentences.append(f"It is better than each other ranked method{which} ({stats.CONFIDENCE:.0%}).")
    if found.undecided:
        why = "fewer than two common seeds, or scores that do not vary"
        sentences.append(f"Whether it is better than these is unknown ({why}): {wording.listing(found.undecided)}.")
    return sentences


def _against_reference(study: Study, found: Standings) -> list[str]:
    methods = len(found.better) + len(found.inconclusive) + len(found.worse)
    if not methods:
        return []
    over = " on these seeds" if found.seeds else ""
    corrected = f"After correction for {methods} comparisons" if methods > 1 else "In one comparison"
    parts = [
        f"{word}: {wording.listing(labels, 8)}"
        for word, labels in (
            (f"better than {study.reference.label}", found.better),
            ("worse", found.worse),
            ("not resolved", found.inconclusive),
            ("without an interval", found.unclear),
        )
        if labels
    ]
    noisy = wording.listing(found.own_noise)
    more = f" More variable than the others, and therefore with wider intervals: {noisy}." if noisy else ""
    resolved = power(found)
    return [f"{corrected}{over}, {'; '.join(parts)}.{more}", *([resolved] if resolved else [])]


def power(found: Standings) -> str:
    """What these seeds can resolve, in one sentence; empty if it is unknown."""
    if found.resolvable is None:
        return ""
    if found.resolvable > 100:
        return f"With these {found.compared_seeds} seeds, no gain is resolved reliably."
    needed = ""
    if found.resolvable > stats.EQUIVALENCE:
        count = "more than 1000" if found.seeds_needed is None else str(found.seeds_needed)
        needed = f"; {stats.EQUIVALENCE} points need {count} seeds"
    gain, n = wording.number(found.resolvable), found.compared_seeds
    return f"With these {n} seeds, a gain of {gain} points is resolved with a probability of {stats.POWER:.0%}{needed}."


def _validity(study: Study) -> list[str]:
    """For which repetitions of the study the intervals hold, if there are any."""
    found = [standings(study, pair) for pair in study.pairs]
    if all(one.new_teachers for one in found if one.better or one.worse or one.inconclusive):
        return []
    return [
        "All intervals hold for one trained teacher and this test set; a repetition with another teacher can fall "
        "outside them."
    ]


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
    who = wording.listing([first.label, *tied])
    few = len(whole.pairs) < PAIRS_FOR_INTERVAL
    sentences = [f"Lowest mean rank over these {len(whole.pairs)} pairs: {who}, {first.rank.mean:.2f}{bounds}."]
    if few:
        sentences.append(f"{len(whole.pairs)} pairs do not support a ranking beyond themselves.")
    if first.gain.mean is not None:
        over = first.gain
        interval = wording.interval(over.low, over.high)
        whose = f"The mean gain of {first.label}" if tied else "Its mean gain"
        sentences.append(
            f"{whose} over {study.reference.label} is {wording.signed(over.mean)} points"
            f"{' ' + interval if interval else ''} (n={wording.plural(over.n, 'pair')})."
        )
    sentences += [*_words_over_pairs(study), *_differences_over_pairs(study, first.label)]
    if whole.partial:
        sentences.append("Incomplete: ranks and gains on a pair use only the seeds that all its ranked methods have.")
    return [Verdict(title, "", tuple(sentences), "" if tied else first.label)]


def _words_over_pairs(study: Study) -> list[str]:
    """Which methods differ from the baseline over pairs, after Holm's correction."""
    by_word = {word: [s.label for s in study.overall.standings if s.words[0] is word] for word in Word}
    tested = sum(len(by_word[word]) for word in (Word.BETTER, Word.WORSE, Word.UNRESOLVED))
    if not tested:
        return []
    names = {Word.BETTER: f"better than {study.reference.label}", Word.WORSE: "worse", Word.UNRESOLVED: "not resolved"}
    parts = [f"{name}: {wording.listing(by_word[word], 8)}" for word, name in names.items() if by_word[word]]
    return [f"Over pairs, after correction for {wording.plural(tested, 'comparison')}, {'; '.join(parts)}."]


def _differences_over_pairs(study: Study, leader: str) -> list[str]:
    """From which methods the leader differs, after correction for all differences of two methods."""
    differences = study.overall.differences
    compared = {b: found.word for (a, b), found in differences.items() if a == leader}
    # What is said of the baseline is corrected for fewer comparisons; both must not contradict one another.
    compared.pop(study.reference.label, None)
    open_ = [label for label, word in compared.items() if word is Word.UNRESOLVED]
    if not compared:
        return []
    pairs = wording.plural(len(differences) // 2, "comparison")
    if open_:
        return [f"Its difference to {wording.listing(open_, 8)} is not resolved (corrected for {pairs})."]
    others = "every other method" if leader == study.reference.label else "every method besides the baseline"
    return [f"It differs from {others} (corrected for {pairs})."]
