"""Where the scores of a pair vary, and what its test images say: the details of a pair below its table.

The images are compared for the method with the highest mean: with each baseline, and with the second-highest mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kdbench.report import stats
from kdbench.report.correctness import Discordant, discordant
from kdbench.report.stats import Estimate, Noise, Spread
from kdbench.report.study import Study
from kdbench.report.verdict import power, standings
from kdbench.results import read_correct


@dataclass(frozen=True)
class Compared:
    """The method with the highest mean compared with another one, over the seeds of both."""

    label: str
    """Of the other method."""
    difference: Estimate
    over_seeds: float | None
    """The standard deviation of the mean difference over other seeds (and their teachers); None if it is unknown."""
    over_images: float | None
    """The same over other test images; None without ``correct.npy``."""
    over_both: float | None
    by_seed: Mapping[int, Discordant]
    """The test images that only one of the two classifies correctly; empty without ``correct.npy``."""


@dataclass(frozen=True)
class Variation:
    """The parts of the variation on one pair. What its design does not let estimate is None or empty."""

    images: int
    """Of the test set."""
    of_training: Spread | None
    of_seeds: Spread | None
    of_test_set: float | None
    """The standard deviation of one accuracy at the mean accuracy of the pair."""
    leader: str
    compared: Sequence[Compared]
    new_teachers: bool
    """Whether each seed has a teacher of its own."""
    power: str
    """What these seeds can resolve, in a sentence; empty if it is unknown."""


def variation(study: Study, pair: str) -> Variation | None:
    """The variation on a pair; None if no ranked method has a score there."""
    found = standings(study, pair)
    if found.best is None:
        return None
    cells = study.pair(pair)
    contenders = cells[cells["rank"].notna() & (cells["diverged"] == 0) & (cells["n"] > 0)]
    noise = found.noise
    images = _images(study, pair)
    leader = str(found.best["label"])
    others = [*(baseline.label for baseline in study.baselines), *contenders["label"].iloc[1:2]]
    trials = _by_seed(study, pair, str(contenders["ranked_seeds"].iloc[0]))
    # Of the few compared methods, each file once.
    read = cache(lambda identifier: read_correct(study.folder.trial(identifier)))
    return Variation(
        images=images,
        of_training=None if noise is None else stats.of_training(noise),
        of_seeds=None if noise is None else stats.of_seeds(study.scores(pair), noise, same=study.same_students(pair)),
        of_test_set=stats.of_one_test_set(float(contenders["top1_mean"].mean()), images) if images else None,
        leader=leader,
        compared=[
            _compared(trials[leader], trials[other], leader, other, noise, read)
            for other in dict.fromkeys(others)
            if other != leader and trials.get(other, {}).keys() & trials[leader].keys()
        ],
        new_teachers=found.new_teachers,
        power=power(found),
    )


@dataclass(frozen=True)
class _Trial:
    identifier: str
    top1: float
    data: str
    """The fingerprint of its data set."""


def _by_seed(study: Study, pair: str, ranked_seeds: str) -> dict[str, dict[int, _Trial]]:
    """The done trials of a pair at the seeds that its ranks use, by label."""
    seeds = {int(seed) for seed in ranked_seeds.split()}
    found: dict[str, dict[int, _Trial]] = {}
    done = study.done(pair)
    rows = zip(done["label"], done["seed"], done["id"], done["top1"], done["data_fingerprint"], strict=True)
    for label, seed, identifier, top1, data in rows:
        if seed in seeds:
            found.setdefault(str(label), {})[int(seed)] = _Trial(str(identifier), float(top1), str(data))
    return found


def _images(study: Study, pair: str) -> int:
    """The number of test images; 0 if it is unknown."""
    for identifier in study.done(pair)["id"]:
        result = study.folder.trial(str(identifier)).recorded
        if result is not None:
            return int(result.data.n_test)
    return 0


def _compared(
    ours: Mapping[int, _Trial],
    theirs: Mapping[int, _Trial],
    label: str,
    other: str,
    noise: Noise | None,
    read: Callable[[str], NDArray[np.bool_] | None],
) -> Compared:
    seeds = sorted(ours.keys() & theirs.keys())
    difference = stats.summary(ours[seed].top1 - theirs[seed].top1 for seed in seeds)
    error = None
    if noise is not None and {label, other} <= noise.scales.keys():
        error = stats.standard_error(noise, label, other, difference)
    same_data = len({trials[seed].data for trials in (ours, theirs) for seed in seeds}) == 1
    found = [read(trials[seed].identifier) for trials in (ours, theirs) for seed in seeds] if same_data else []
    known = [one for one in found if one is not None]
    if len(known) < 2 * len(seeds):
        return Compared(other, difference, error, None, None, {})
    a, b = np.stack(known[: len(seeds)]), np.stack(known[len(seeds) :])
    over_images = stats.of_images(a, b)
    return Compared(
        other,
        difference,
        error,
        over_images.std,
        None if error is None else over_images.with_seeds(error),
        {seed: discordant(*both) for seed, *both in zip(seeds, a, b, strict=True)},
    )
