"""How often the report's statements are right: studies drawn from a known world, judged by the report's functions.

    python benchmarks/coverage.py [--draws 2000] [--table pair]

A score is the sum of the method's effect (in the population, on the teacher's architecture, and on the pair), an
effect of the trained teacher (common to all methods, and one for each method), the student's own seed, and a binomial
test set.
What an interval should contain is the effect that other teachers and seeds would have on average. Intervals of one pair
hold for all methods at once, so that their coverage is the share of tables in which all of them are right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from kdbench.report import stats

CRD = (0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4, 5, 5)
"""The teacher of each of the 13 pairs of the CRD study, whose six networks have one or more students each."""
SPREAD = np.linspace(0.0, 2.0, 8)
"""Effects of eight methods that differ, in points."""
LABELS = [f"method {number}" for number in range(13)]


@dataclass(frozen=True)
class World:
    """Standard deviations are in points."""

    name: str
    teachers: tuple[int, ...] = (0,)
    """The architecture of each pair's teacher."""
    seeds: int = 3
    effects: tuple[float, ...] = (0.0,) * 8
    teacher_per_seed: bool = True
    teacher: float = 0.3
    teacher_by_method: float = 0.2
    own: float = 0.15
    noisy: float = 1.0
    """Times ``own`` and ``teacher_by_method``, for the last method."""
    architecture: float = 0.35
    pair: float = 0.35
    accuracy: float = 72.0
    images: int = 10_000

    def draw(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Scores (pairs, methods, seeds) in percent, and the true effects on each pair (pairs, methods)."""
        methods, pairs = len(self.effects), len(self.teachers)
        several = pairs > 1
        of_architecture = generator.normal(0, self.architecture * several, (max(self.teachers) + 1, methods))
        of_pair = generator.normal(0, self.pair * several, (pairs, methods))
        true = np.array(self.effects) + of_architecture[list(self.teachers)] + of_pair
        times = np.ones((methods, 1))
        times[-1] = self.noisy
        trained = self.seeds if self.teacher_per_seed else 1
        # Pairs of one teacher share its weights.
        common = generator.normal(0, self.teacher, (max(self.teachers) + 1, 1, trained))
        each = times * generator.normal(0, self.teacher_by_method, (max(self.teachers) + 1, methods, trained))
        own = times * generator.normal(0, self.own, (pairs, methods, self.seeds))
        mean = self.accuracy + true[:, :, None] + (common + each)[list(self.teachers)] + own
        counted = generator.binomial(self.images, np.clip(mean, 0, 100) / 100)
        return 100 * counted / self.images, true


@dataclass
class Tally:
    """Shares over the draws."""

    hits: float = 0
    draws: int = 0

    def add(self, hit: float) -> None:
        """Count one more draw."""
        self.hits += float(hit)
        self.draws += 1

    def __str__(self) -> str:
        return f"{self.hits / self.draws:.2f}" if self.draws else "–"


def table(scores: np.ndarray) -> dict[str, dict[int, float]]:
    """One pair's scores (methods, seeds) by label and seed."""
    return {LABELS[m]: dict(enumerate(map(float, row))) for m, row in enumerate(scores)}


def contains(low: float | None, high: float | None, value: float) -> bool:
    """Whether an interval, which may be missing, is right about a value."""
    return low is None or high is None or low <= value <= high


def one_pair(world: World, draws: int, generator: np.random.Generator) -> dict[str, Tally]:
    """What is said about the first pair of each drawn study, by the former words and by the present ones."""
    names = (
        "old each",
        "old all",
        "old wrong word",
        "each",
        "all",
        "wrong word",
        "found",
        "old found",
        "best in",
        "size",
    )
    tallies = {name: Tally() for name in (*names, "leader", "no interval")}
    for _ in range(draws):
        scores, true = world.draw(generator)
        rows, effects = table(scores[0]), true[0] - true[0][0]
        old = {
            label: stats.estimate(rows[label][seed] - rows[LABELS[0]][seed] for seed in rows[label])
            for label in list(rows)[1:]
        }
        noise = stats.noise(rows)
        for prefix, found in (("old ", old), ("", stats.gains(rows, LABELS[0], noise))):
            right = [contains(g.low, g.high, effects[m]) for m, g in enumerate(found.values(), 1)]
            wrong = [
                bool(g.resolved) and np.sign(g.mean) != np.sign(effects[m]) for m, g in enumerate(found.values(), 1)
            ]
            for one in right:
                tallies[f"{prefix}each"].add(one)
            tallies[f"{prefix}all"].add(all(right))
            tallies[f"{prefix}wrong word"].add(any(wrong))
            for m, g in enumerate(found.values(), 1):
                if effects[m]:
                    tallies[f"{prefix}found"].add(bool(g.resolved) and np.sign(g.mean) == np.sign(effects[m]))
        tallies["no interval"].add(noise is None)
        distances = stats.behind_best(rows, noise)
        best = {label for label, distance in distances.items() if not stats.is_excluded(distance)}
        truly = {LABELS[m] for m in np.flatnonzero(true[0] == true[0].max())}
        tallies["best in"].add(len(truly & best) / len(truly))
        tallies["size"].add(len(best))
        if len(truly) == 1:
            tallies["leader"].add(LABELS[int(scores[0].mean(axis=1).argmax())] in truly)
    return tallies


def components(world: World, draws: int, generator: np.random.Generator) -> dict[str, Tally]:
    """What is said about the parts of the variation on one pair, and how large they are."""
    tallies = {name: Tally() for name in ("noise", "noise found", "noise right", "seed", "seed found", "seed right")}
    p = world.accuracy / 100
    own = np.sqrt(world.teacher_by_method**2 + world.own**2 + 1e4 * p * (1 - p) / world.images)
    for _ in range(draws):
        rows = table(world.draw(generator)[0][0])
        noise = stats.noise(rows)
        seeds = stats.of_seeds(rows, noise) if noise is not None else None
        if noise is None or seeds is None:
            continue
        # Their squares, as estimates of variances are right on average.
        for name, true, found in (("noise", own, stats.of_training(noise)), ("seed", world.teacher, seeds)):
            tallies[name].add(true)
            tallies[f"{name} found"].add(found.std**2)
            tallies[f"{name} right"].add(found.low <= true <= found.high)
    for name in ("noise", "seed"):
        tally = tallies[f"{name} found"]
        tallies[f"{name} found"] = Tally(float(np.sqrt(tally.hits / tally.draws)), 1)
    return tallies


def over_pairs(world: World, draws: int, generator: np.random.Generator) -> dict[str, Tally]:
    """What is said about all pairs together: the gains over the first method, and the mean ranks."""
    expected_ranks = np.mean([_ranks(world.draw(generator)[0]).mean(axis=0) for _ in range(4000)], axis=0)
    names = ("old each", "each", "wrong word", "old wrong word", "rank", "matrix", "above", "found")
    tallies = {name: Tally() for name in names}
    effects = np.array(world.effects) - world.effects[0]
    for _ in range(draws):
        scores, _ = world.draw(generator)
        means = scores.mean(axis=2)
        gains = means[:, 1:] - means[:, :1]
        found = [stats.clustered(gains[:, m], world.teachers) for m in range(gains.shape[1])]
        old = [stats.estimate(gains[:, m]) for m in range(gains.shape[1])]
        for m, (new, former) in enumerate(zip(found, old, strict=True), 1):
            tallies["each"].add(contains(new.estimate.low, new.estimate.high, effects[m]))
            tallies["old each"].add(contains(former.low, former.high, effects[m]))
        adjusted = stats.holm(1.0 if one.p_value is None else one.p_value for one in found)
        said = [p < 0.05 for p in adjusted]
        signs = [np.sign(one.estimate.mean) == np.sign(effects[m]) for m, one in enumerate(found, 1)]
        tallies["wrong word"].add(any(s and not right for s, right in zip(said, signs, strict=True)))
        tallies["old wrong word"].add(
            any(bool(o.resolved) and np.sign(o.mean) != np.sign(effects[m]) for m, o in enumerate(old, 1))
        )
        for m, (s, right) in enumerate(zip(said, signs, strict=True), 1):
            if effects[m]:
                tallies["found"].add(s and right)
        ranked = _ranks(scores)
        for m in range(ranked.shape[1]):
            rank = stats.clustered(ranked[:, m], world.teachers).estimate
            tallies["rank"].add(contains(rank.low, rank.high, expected_ranks[m]))
        pairs = list(combinations(range(means.shape[1]), 2))
        differences = [stats.clustered(means[:, b] - means[:, a], world.teachers) for a, b in pairs]
        decided = stats.holm(1.0 if one.p_value is None else one.p_value for one in differences)
        tallies["matrix"].add(
            any(
                p < 0.05 and np.sign(one.estimate.mean) != np.sign(world.effects[b] - world.effects[a])
                for p, one, (a, b) in zip(decided, differences, pairs, strict=True)
            )
        )
    return tallies


def _ranks(scores: np.ndarray) -> np.ndarray:
    return np.asarray(stats.ranks(scores.mean(axis=2)))


def within_pair_worlds() -> Iterable[World]:
    """One pair."""
    base = World("3 seeds, 72 % of 10,000 images, all equal")
    differing = replace(base, effects=tuple(SPREAD))
    yield replace(base, name="2 seeds, all equal", seeds=2)
    yield base
    yield replace(base, name="5 seeds, all equal", seeds=5)
    yield replace(base, name="3 seeds, 13 methods, all equal", effects=(0.0,) * 13)
    yield replace(differing, name="2 seeds, effects 0 to 2", seeds=2)
    yield replace(differing, name="3 seeds, effects 0 to 2")
    yield replace(differing, name="5 seeds, effects 0 to 2", seeds=5)
    small = {"accuracy": 97.0, "images": 500}
    yield replace(base, name="3 seeds, 97 % of 500 images, all equal", **small)
    yield replace(differing, name="3 seeds, 97 % of 500 images, effects 0 to 2", **small)
    yield replace(base, name="3 seeds, teacher .6 + .4, own .1", teacher=0.6, teacher_by_method=0.4, own=0.1)
    yield replace(base, name="3 seeds, teacher 0, own .3", teacher=0.0, teacher_by_method=0.0, own=0.3)
    for times in (2, 5):
        name = f"3 seeds, one method {times} times noisier, 1,000,000 images"
        yield replace(base, name=name, noisy=float(times), images=1_000_000)
    yield replace(base, name="3 seeds, one teacher, another test", teacher_per_seed=False)


def components_worlds() -> Iterable[World]:
    """One pair, of which the parts of the variation are estimated."""
    base = World("3 seeds")
    for seeds in (2, 3, 5, 10):
        yield replace(base, name=f"{seeds} seeds", seeds=seeds)
    yield replace(base, name="3 seeds, 97 % of 500 images", accuracy=97.0, images=500)
    yield replace(base, name="3 seeds, nothing in common", teacher=0.0)
    yield replace(base, name="3 seeds, teacher 1.0", teacher=1.0)
    yield replace(base, name="3 seeds, two methods", effects=(0.0, 0.0))


def over_pairs_worlds() -> Iterable[World]:
    """Several pairs."""
    for seeds in (2, 3, 5):
        yield World(f"5 pairs of 5 teachers, {seeds} seeds, all equal", tuple(range(5)), seeds)
    yield World("5 pairs of 2 teachers, all equal", (0, 0, 0, 1, 1))
    for seeds in (2, 3, 5):
        yield World(f"13 pairs of CRD, {seeds} seeds, all equal", CRD, seeds)
    yield World("13 pairs of CRD, effects 0 to 2", CRD, effects=tuple(SPREAD))
    yield World("13 pairs of CRD, 13 methods, all equal", CRD, effects=(0.0,) * 13)
    yield World("13 pairs of CRD, one teacher each", CRD, teacher_per_seed=False)
    yield World("13 pairs of 13 teachers, all equal", tuple(range(13)))
    yield World("13 pairs of CRD, pairs alike", CRD, architecture=0.0, pair=0.0)
    yield World("13 pairs of CRD, teachers' architectures differ most", CRD, architecture=0.6, pair=0.1)


PAIR_COLUMNS = {
    "old each": "t interval right",
    "old wrong word": "a wrong word by t intervals",
    "all": "all intervals right",
    "wrong word": "a wrong word",
    "old found": "gains found by t intervals",
    "found": "gains found",
    "leader": "highest mean is the best",
    "best in": "best is in the set",
    "size": "methods in the set",
}
COMPONENT_COLUMNS = {
    "noise": "one training, true",
    "noise found": "estimated",
    "noise right": "interval right",
    "seed": "seed and teacher, true",
    "seed found": "estimated ",
    "seed right": "interval right ",
}
OVER_COLUMNS = {
    "old each": "t interval right",
    "old wrong word": "a wrong word by t intervals",
    "each": "interval right",
    "wrong word": "a wrong word",
    "matrix": "a wrong word in the matrix",
    "rank": "interval of a mean rank right",
    "found": "gains found",
}


TABLES: dict[str, tuple[Callable[[], Iterable[World]], Callable[..., dict[str, Tally]], dict[str, str]]] = {
    "pair": (within_pair_worlds, one_pair, PAIR_COLUMNS),
    "components": (components_worlds, components, COMPONENT_COLUMNS),
    "pairs": (over_pairs_worlds, over_pairs, OVER_COLUMNS),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", default="", help="worlds whose names contain this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", choices=TABLES, action="append", help="only this table")
    given = parser.parse_args()
    for name in given.table or TABLES:
        worlds, judge, columns = TABLES[name]
        print(f"| world | {' | '.join(columns.values())} |")
        print(f"|---|{'---:|' * len(columns)}")
        for world in (one for one in worlds() if given.only in one.name):
            tallies = judge(world, given.draws, np.random.default_rng(given.seed))
            print(f"| {world.name} | {' | '.join(str(tallies[name]) for name in columns)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
