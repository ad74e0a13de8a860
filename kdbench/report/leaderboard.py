"""From trials to the leaderboard: one row per pair and method, and the comparison over pairs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from kdbench.metrics import HEADLINE, METRICS
from kdbench.report import stats
from kdbench.report.frame import BY_EPOCH, method_order, pair_order
from kdbench.report.stats import Comparison, Estimate, Mean, RankInterval
from kdbench.status import Status
from kdbench.suite.schema import BASELINES

COUNTED = tuple(status for status in Status if status is not Status.DONE)
TEXT = ("teacher", "student", "method", "label", "pair", "reason", "plugin", "plugin_version", "ranked_seeds")
WHOLE = ("student_parameters", "trained_parameters", "adapter_parameters", "peak_memory_bytes", "extra_epochs")


def _others(added: Sequence[str]) -> list[str]:
    """The metrics other than the accuracy used for ranking."""
    return [name for name in (*METRICS, *added, *BY_EPOCH) if name != HEADLINE]


def gain_over(name: str) -> str:
    """The column of the gain over a baseline, by its name in the suite."""
    return f"gain_over_{name}"


def _spread(name: str) -> list[str]:
    """The columns of a difference."""
    return [name, *(f"{name}_{part}" for part in ("n", "low", "high", "resolved"))]


def columns(added: Sequence[str] = (), baselines: Sequence[str] = BASELINES) -> tuple[str, ...]:
    """The columns of ``leaderboard.csv``; ``added`` are the suite's further metrics.

    Accuracies and gains are in percent and percentage points. The intervals of a pair's gains over a baseline hold for
    all methods at once, and ``gain_over_*_resolved`` says whether one excludes 0. ``behind_best`` is the difference to
    the highest mean, ``behind_best_resolved`` whether the method is not the best. ``ranked_seeds``: the seeds used for
    the ranks of a pair. If these are not all seeds, the gains and differences of ranked methods use only them too.
    """
    first, *rest = map(gain_over, baselines)
    differences = [_spread(first)[1:], *map(_spread, rest), _spread("behind_best")]
    return (
        "teacher", "student", "method", "n", "diverged", "top1_mean", "top1_std", first, "seconds",
        "label", "pair", "planned", "failed", "pending", "stale", "skipped", "reason",
        "rank", "ranked_seeds", "top1_low", "top1_high",
        *(name for group in differences for name in group),
        *(f"{name}_mean" for name in _others(added)),
        "teacher_top1", "teacher_seconds", "seconds_per_step", "images_per_second", "peak_memory_bytes",
        "student_parameters", "trained_parameters", "adapter_parameters", "extra_epochs",
        "plugin", "plugin_version",
    )  # fmt: skip


COLUMNS = columns()
"""The columns without added metrics and with the default baselines."""


class Word(StrEnum):
    """What the results support about a difference."""

    BETTER = "better"
    WORSE = "worse"
    UNRESOLVED = "not resolved"
    UNKNOWN = ""
    """There are too few results for an interval."""


@dataclass(frozen=True)
class Difference:
    """Of two methods over all compared pairs."""

    found: Estimate
    p_value: float
    """After Holm's correction for all differences."""

    @property
    def word(self) -> Word:
        """About the first of the two."""
        return _word(self.found.mean, self.p_value)


@dataclass(frozen=True)
class Standing:
    """A method over all pairs."""

    label: str
    method: str
    pairs: int
    """Number of pairs with a result."""
    gains: tuple[Estimate, ...]
    """Gain over each baseline, averaged over pair means."""
    words: tuple[Word, ...]
    """What the pairs support about each gain, after correction for the number of methods."""
    improvement: float | None
    """Probability that a student has a higher score than one of the first baseline, at another seed."""
    useful: float | None
    """Probability that the gain over the first baseline is above :data:`stats.EQUIVALENCE`."""
    rank: RankInterval | None
    """Mean rank in the compared block; None if the method is not in it."""
    diverged: int
    finished: int
    relative_seconds: float | None
    """Training time relative to the first baseline, geometric mean over pairs."""
    why_unranked: str

    @property
    def gain(self) -> Estimate:
        """Gain over the first baseline."""
        return self.gains[0]


@dataclass(frozen=True)
class Overall:
    """All methods over pairs, best first, and the block of pairs and methods in which they are ranked."""

    standings: tuple[Standing, ...]
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    comparison: Comparison | None
    differences: Mapping[tuple[str, str], Difference]
    """For each two methods of the block without a diverged trial, in both orders; empty without intervals."""
    partial: bool
    """Whether the block contains incomplete cells, because too few are complete. Ranks then use only the seeds that all
    ranked methods of a pair have."""


def leaderboard(
    trials: pd.DataFrame,
    shown: Sequence[str] | None = None,
    *,
    added: Sequence[str] = (),
    baselines: Sequence[str] = BASELINES,
) -> pd.DataFrame:
    """One row per pair and method, pairs in the suite's order, best first. Columns: :func:`columns`.

    ``added`` are the suite's further metrics, ``baselines`` the names of its baselines.

    ``shown``: labels to keep and to rank; gains over the baselines use all of ``trials``. Gains are paired by
    seed. Ranks compare means over the same seeds: the methods with all their seeds are ranked, the others are not.
    If fewer than two have all of them, the methods with the most common seeds are ranked, and their gains and
    differences use only these seeds. A method with a diverged trial ranks after all that have none.
    """
    order = method_order(trials)
    rows: list[dict[str, Any]] = []
    for _, group in trials.groupby("pair", sort=False):
        by_label = {str(label): rows for label, rows in group.groupby("label", sort=False)}
        top1 = {label: top1_by_seed(rows) for label, rows in by_label.items()}
        references = {name: (label, top1.get(label, {})) for name in baselines for label in [baseline(group, name)]}
        cells = [
            _cell(by_label[label], top1[label], _others(added))
            for label in order
            if label in by_label and (shown is None or label in shown)
        ]
        _rank(cells, {label: _finished(rows) for label, rows in by_label.items()})
        diverged = {label for label, found in by_label.items() if (found["status"] == Status.DIVERGED).any()}
        _compare(cells, top1, references, diverged, same_students(group))
        # Unranked methods last, in the suite's order; those without any result after the incomplete ones.
        rows += sorted(
            cells, key=lambda cell: (cell["rank"] is None, cell["rank"] or 0, not cell["n"] + cell["diverged"])
        )
    frame = pd.DataFrame(rows, columns=list(columns(added, baselines)))
    for name in frame.columns:
        if name.endswith("_resolved"):
            frame[name] = frame[name].astype("boolean")
        elif name in WHOLE:
            frame[name] = frame[name].astype("Int64")
        elif name not in TEXT:
            frame[name] = pd.to_numeric(frame[name])
    return frame


def baseline(trials: pd.DataFrame, name: str) -> str:
    """The label under which the baseline ``name`` runs: its own name, or else the first of its rows."""
    labels = list(dict.fromkeys(trials.loc[trials["method"] == name, "label"]))
    return name if name in labels or not labels else str(labels[0])


def top1_by_seed(trials: pd.DataFrame) -> dict[int, float]:
    """The top-1 of the done ones among one method's trials on one pair, by seed."""
    done = trials[trials["status"] == Status.DONE]
    return {int(seed): float(top1) for seed, top1 in zip(done["seed"], done["top1"], strict=True)}


def overall(trials: pd.DataFrame, cells: pd.DataFrame, baselines: Sequence[str] = BASELINES) -> Overall:
    """All methods of the leaderboard over its pairs."""
    pairs, methods = pair_order(cells), [m for m in method_order(trials) if m in set(cells["label"])]
    block_methods, block_pairs, partial = _block(cells, methods, pairs)
    scores = [common_scores(trials, pair, block_methods) for pair in block_pairs]
    ranked: dict[str, RankInterval] = {}
    comparison, differences = None, {}
    if scores:
        means = np.stack([pair.mean(axis=0) for pair in scores])
        teachers = teachers_of(cells, block_pairs)
        ranks = stats.mean_ranks(means, teachers, intervals=not partial)
        ranked = dict(zip(block_methods, ranks, strict=True))
        if not partial:
            comparison = stats.compare_over_pairs(means)
            differences = _differences(dict(zip(block_methods, means.T, strict=True)), teachers)
    gains = [_gains_over_pairs(cells, name, methods) for name in baselines]
    by_pair, first = _scores_by_pair(trials), baseline(trials, baselines[0])
    standings = [_standing(label, cells, by_pair, ranked.get(label), block_pairs, gains, first) for label in methods]
    standings.sort(key=_standing_order)
    return Overall(tuple(standings), tuple(block_pairs), tuple(block_methods), comparison, differences, partial)


def teachers_of(cells: pd.DataFrame, pairs: Sequence[str]) -> list[str]:
    """The teacher of each pair: pairs of one teacher are no independent observations."""
    known = dict(zip(cells["pair"], cells["teacher"], strict=True))
    return [str(known[pair]) for pair in pairs]


def _gains_over_pairs(cells: pd.DataFrame, baseline: str, methods: Sequence[str]) -> dict[str, tuple[Mean, Word]]:
    found = {}
    for label in methods:
        known = cells[(cells["label"] == label) & cells[gain_over(baseline)].notna()]
        found[label] = stats.clustered(known[gain_over(baseline)].tolist(), known["teacher"].tolist())
    tested = [label for label, mean in found.items() if mean.p_value is not None]
    adjusted = dict(zip(tested, stats.holm([found[label].p_value or 0.0 for label in tested]), strict=True))
    return {label: (mean, _word(mean.estimate.mean, adjusted.get(label))) for label, mean in found.items()}


def _word(mean: float | None, p_value: float | None) -> Word:
    if mean is None or p_value is None:
        return Word.UNKNOWN
    if p_value >= 1 - stats.CONFIDENCE:
        return Word.UNRESOLVED
    return Word.BETTER if mean > 0 else Word.WORSE


def _differences(means: Mapping[str, stats.Array], teachers: Sequence[str]) -> dict[tuple[str, str], Difference]:
    finite = {label: values for label, values in means.items() if np.isfinite(values).all()}
    found = {(a, b): stats.clustered((finite[a] - finite[b]).tolist(), teachers) for a, b in combinations(finite, 2)}
    tested = {both: mean for both, mean in found.items() if mean.p_value is not None}
    adjusted = stats.holm([mean.p_value or 0.0 for mean in tested.values()])
    result = {}
    for ((a, b), mean), p_value in zip(tested.items(), adjusted, strict=True):
        result[a, b] = Difference(mean.estimate, p_value)
        result[b, a] = Difference(mean.estimate.negated, p_value)
    return result


def same_students(trials: pd.DataFrame) -> dict[str, str]:
    """By label: the first label whose students have the same weights at all seeds; ``trials``: of one pair.

    By the checksums of their files: students whose weights were written in another order count as different.
    """
    done = trials[trials["status"] == Status.DONE]
    weights: dict[str, dict[int, str]] = {}
    for label, seed, sha256 in zip(done["label"], done["seed"], done["student_sha256"], strict=True):
        weights.setdefault(str(label), {})[int(seed)] = sha256
    first: dict[tuple[tuple[int, str], ...], str] = {}
    return {
        label: first.setdefault(tuple(sorted(by_seed.items())), label) if all(by_seed.values()) else label
        for label, by_seed in weights.items()
    }


def _cell(trials: pd.DataFrame, ours: dict[int, float], others: Sequence[str]) -> dict[str, Any]:
    first = trials.iloc[0]
    done = trials[trials["status"] == Status.DONE]
    states = trials["status"].value_counts()
    accuracy = stats.bounded(stats.estimate(ours.values()), 0, 100)
    cell: dict[str, Any] = {
        **{name: first[name] for name in ("teacher", "student", "method", "label", "pair")},
        "n": accuracy.n,
        "planned": len(trials),
        **{state: int(states.get(state, 0)) for state in COUNTED},
        "reason": "; ".join(dict.fromkeys(str(r) for r in trials["reason"] if r)),
        "top1_mean": accuracy.mean,
        "top1_std": accuracy.std,
        "top1_low": accuracy.low,
        "top1_high": accuracy.high,
        "plugin": next((p for p in trials["plugin"] if p), ""),
        "plugin_version": next((v for v in trials["plugin_version"] if v), ""),
    }
    for name in others:
        cell[f"{name}_mean"] = _mean(done[name])
    for name in ("teacher_top1", "seconds", "teacher_seconds", "seconds_per_step", "images_per_second"):
        cell[name] = _mean(done[name])
    for name in (
        "peak_memory_bytes", "student_parameters", "trained_parameters", "adapter_parameters", "extra_epochs"
    ):  # fmt: skip
        known = done[name].dropna()
        cell[name] = int(known.max()) if len(known) else None
    return cell


def _difference(name: str, found: Estimate) -> dict[str, Any]:
    values = (found.mean, found.n, found.low, found.high, found.resolved)
    return dict(zip(_spread(name), values, strict=True))


def _mean(values: pd.Series[Any]) -> float | None:
    known = values.dropna()
    return float(known.mean()) if len(known) else None


def _finished(trials: pd.DataFrame) -> dict[int, float]:
    """The score of each finished trial of one method on one pair, by seed; :data:`stats.DIVERGED` where it diverged."""
    diverged = trials.loc[trials["status"] == Status.DIVERGED, "seed"]
    return top1_by_seed(trials) | {int(seed): stats.DIVERGED for seed in diverged}


def _rank(cells: list[dict[str, Any]], finished: dict[str, dict[int, float]]) -> None:
    """Rank the methods of a pair over the seeds that all ranked methods have."""
    begun = [cell for cell in cells if cell["n"] + cell["diverged"]]
    ranked = [cell for cell in begun if is_complete(cell)]
    if len(ranked) > 1:
        seeds = sorted(set.intersection(*(set(finished[cell["label"]]) for cell in ranked)))
    else:
        seeds = _most_shared([frozenset(finished[cell["label"]]) for cell in begun])
        ranked = [cell for cell in begun if set(seeds) <= set(finished[cell["label"]])]
    for cell in cells:
        cell["rank"], cell["ranked_seeds"] = None, ""
    if not seeds:
        return
    scores = [np.mean([finished[cell["label"]][seed] for seed in seeds]) for cell in ranked]
    for cell, rank in zip(ranked, stats.ranks(np.asarray(scores, dtype=np.float64)), strict=True):
        cell["rank"], cell["ranked_seeds"] = float(rank), " ".join(map(str, seeds))


def _most_shared(seeds: Sequence[frozenset[int]]) -> list[int]:
    """The largest set of seeds that two methods share; of equally large ones, the one that most methods have."""
    shared = {ours & theirs for ours, theirs in combinations(seeds, 2)} or set(seeds)
    return max(
        (sorted(common) for common in shared),
        key=lambda common: (len(common), sum(other.issuperset(common) for other in seeds), [-seed for seed in common]),
        default=[],
    )


def is_complete(cell: Mapping[Any, Any]) -> bool:
    """Whether each trial of a pair and method has an outcome."""
    return bool(cell["n"] + cell["diverged"] == cell["planned"])


def _compare(
    cells: list[dict[str, Any]],
    top1: dict[str, dict[int, float]],
    references: dict[str, tuple[str, dict[int, float]]],
    diverged: Collection[str],
    same: stats.Same,
) -> None:
    """Gains over the baselines, and differences to the highest mean. ``same``: as :func:`same_students`."""
    ranked = [cell for cell in cells if cell["rank"] is not None]
    used = dict(top1)
    if any(not is_complete(cell) for cell in ranked):
        # A difference over other seeds could contradict the ranks.
        for cell in ranked:
            ours = top1[cell["label"]]
            used[cell["label"]] = {seed: ours[seed] for seed in map(int, cell["ranked_seeds"].split()) if seed in ours}
    best = min((cell for cell in ranked if not cell["diverged"]), key=lambda cell: cell["rank"], default=None)
    # The seeds that did not diverge are selected by their outcome, others are missing, and one score does not tell how
    # much it varies: no interval there.
    sound = {
        cell["label"]: used[cell["label"]] for cell in ranked if not cell["diverged"] and len(used[cell["label"]]) > 1
    }
    noise = stats.noise(sound, same)
    behind = stats.behind_best(sound, noise, same=same)
    gains = {}
    for name, (reference, theirs) in references.items():
        values = used.get(reference, theirs)
        gains[name] = _plain_gains(used, values)
        if len(values) > 1 and reference not in diverged:
            family = {**sound, reference: values}
            common = noise if reference in sound else stats.noise(family, same)
            gains[name] |= stats.gains(family, reference, common, same=same)
    for cell in cells:
        label = cell["label"]
        for name, (reference, theirs) in references.items():
            is_it = label == reference or (cell["method"] == name and theirs == top1[label])
            cell |= _difference(gain_over(name), Estimate(0) if is_it else gains[name].get(label, Estimate(0)))
        distance = Estimate(0) if cell is best else behind.get(label, Estimate(0))
        cell |= _difference("behind_best", distance)
        cell["behind_best_resolved"] = None if distance.low is None else stats.is_excluded(distance)


def _plain_gains(scores: stats.Scores, theirs: Mapping[int, float]) -> dict[str, Estimate]:
    return {
        label: stats.summary(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))
        for label, ours in scores.items()
    }


def common_scores(trials: pd.DataFrame, pair: str, methods: Sequence[str]) -> stats.Array:
    """(seeds, methods): the scores over the seeds that these methods have in common on a pair."""
    group = trials[(trials["pair"] == pair) & trials["label"].isin(methods)]
    by_label = {str(label): _finished(rows) for label, rows in group.groupby("label")}
    seeds = sorted(set.intersection(*(set(scores) for scores in by_label.values())))
    return np.array([[by_label[label][seed] for label in methods] for seed in seeds], dtype=np.float64)


def _block(cells: pd.DataFrame, methods: Sequence[str], pairs: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """The methods and pairs that can be compared, and whether incomplete cells had to be used.

    Complete cells are used first. Only if they allow no comparison, as early in a run, cells that are ranked over
    part of the seeds are used.
    """
    complete = cells["n"] + cells["diverged"] == cells["planned"]
    for partial, enough in ((False, complete), (True, cells["rank"].notna())):
        table = cells.assign(enough=enough).pivot(index="label", columns="pair", values="enough")
        table = table.reindex(index=list(methods), columns=list(pairs), fill_value=False).fillna(False)
        rows, columns = stats.complete_block(table.to_numpy(dtype=bool))
        if len(rows) > 1:
            return [methods[i] for i in rows], [pairs[i] for i in columns], partial
    return [], [], False


def _standing(
    label: str,
    everyone: pd.DataFrame,
    scores: Mapping[str, Mapping[str, stats.Array]],
    rank: RankInterval | None,
    block: Sequence[str],
    gains: Sequence[Mapping[str, tuple[Mean, Word]]],
    first: str,
) -> Standing:
    """``gains``: over each baseline, by label; ``first``: the label of the first baseline."""
    cells = everyone[everyone["label"] == label]
    finished = cells[cells["n"] + cells["diverged"] > 0]
    complete = cells[cells["n"] + cells["diverged"] == cells["planned"]]
    lacking = [pair for pair in block if pair not in set(complete["pair"])]
    return Standing(
        label=label,
        method=str(cells["method"].iloc[0]),
        pairs=len(finished),
        gains=tuple(found[label][0].estimate for found in gains),
        words=tuple(found[label][1] for found in gains),
        improvement=None if label == first else _improvement(scores, label, first),
        useful=gains[0][label][0].probability_above(stats.EQUIVALENCE),
        rank=rank,
        diverged=int(cells["diverged"].sum()),
        finished=int((cells["n"] + cells["diverged"]).sum()),
        relative_seconds=_relative_cost(cells, everyone, first),
        why_unranked=_why_unranked(cells, lacking) if rank is None else "",
    )


def _improvement(scores: Mapping[str, Mapping[str, stats.Array]], label: str, first: str) -> float | None:
    ours, theirs = scores.get(label, {}), scores.get(first, {})
    common = [pair for pair in ours if pair in theirs]
    return stats.probability_of_improvement([ours[pair] for pair in common], [theirs[pair] for pair in common])


def _scores_by_pair(trials: pd.DataFrame) -> dict[str, dict[str, stats.Array]]:
    """The top-1 of the done trials, by label and pair."""
    done = trials[trials["status"] == Status.DONE]
    found: dict[str, dict[str, stats.Array]] = {}
    for (label, pair), rows in done.groupby(["label", "pair"], sort=False):
        found.setdefault(label, {})[pair] = rows["top1"].to_numpy(dtype=np.float64)
    return found


def _relative_cost(cells: pd.DataFrame, everyone: pd.DataFrame, first: str) -> float | None:
    reference = everyone[everyone["label"] == first].set_index("pair")["seconds"]
    ratio = (cells.set_index("pair")["seconds"] / reference).dropna()
    ratio = ratio[ratio > 0]
    return float(np.exp(np.log(ratio).mean())) if len(ratio) else None


def _why_unranked(cells: pd.DataFrame, lacking: Sequence[str]) -> str:
    rows = cells[cells["pair"].isin(lacking)] if lacking else cells
    states = [s for s in COUNTED if s is not Status.DIVERGED and rows[s].sum() > 0]
    where = f" on {len(lacking)} of the compared pairs" if lacking else ""
    return f"{' and '.join(states) or 'no result'}{where}"


def _standing_order(standing: Standing) -> tuple[bool, float, float]:
    gain = standing.gain.mean
    return (
        standing.rank is None,
        standing.rank.mean if standing.rank else 0.0,
        -gain if gain is not None else 0.0,
    )
