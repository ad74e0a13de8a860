"""The data of a report, read once: the input of every section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.hookspecs import MetricSpec
from kdbench.metrics import METRICS
from kdbench.report import stats, wording
from kdbench.report.frame import added_metrics, method_order, pair_order, read_curves, read_trials, select
from kdbench.report.leaderboard import Overall, baseline, gain_over, leaderboard, overall, same_students
from kdbench.report.stats import Noise
from kdbench.report.styles import Style, styles
from kdbench.results import NO_PLAN, PlanRecord, SuiteFolder
from kdbench.status import FINISHED, Status
from kdbench.suite.filters import Filters, check_highlight
from kdbench.suite.schema import BASELINES

if TYPE_CHECKING:
    from kdbench.report.verdict import Standings


@dataclass(frozen=True)
class Baseline:
    """A baseline for gains."""

    name: str
    """The name in the suite: a label or a method."""
    label: str
    """Its label in the results."""

    @property
    def gain(self) -> str:
        """The leaderboard's column of gains over it."""
        return gain_over(self.name)


@dataclass(frozen=True)
class Study:
    """The results so far of a suite."""

    folder: SuiteFolder
    plan: PlanRecord
    filters: Filters
    trials: pd.DataFrame
    """The trials shown, one row each (:func:`kdbench.report.frame.columns`)."""
    cells: pd.DataFrame
    """The leaderboard (:func:`kdbench.report.leaderboard.columns`)."""
    overall: Overall
    styles: Mapping[str, Style]
    """By label; filters do not change the style of a label."""
    baselines: tuple[Baseline, ...]
    """The baselines for gains; the first is the reference of verdicts and relative times."""
    metrics: Mapping[str, MetricSpec]
    """All metrics by name."""
    highlighted: tuple[str, ...] = ()
    """Labels that tables and figures mark, in the suite's order."""
    standings: dict[str, Standings] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By pair, kept by :func:`kdbench.report.verdict.standings` for all sections."""

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per epoch (:func:`kdbench.report.frame.read_curves`)."""
        return read_curves(self.folder, self.trials)

    def copy(self) -> Study:
        """A copy whose tables may be modified."""
        copied = replace(self, trials=self.trials.copy(), cells=self.cells.copy())
        if "curves" in vars(self):
            vars(copied)["curves"] = self.curves.copy()
        return copied

    @property
    def name(self) -> str:
        """The suite's name."""
        return self.folder.path.name

    @property
    def suite(self) -> Mapping[str, Any]:
        """The suite as planned; empty if the plan is missing."""
        return self.plan.suite

    @property
    def reference(self) -> Baseline:
        """The first of the baselines."""
        return self.baselines[0]

    @property
    def added(self) -> Mapping[str, MetricSpec]:
        """The metrics that the suite adds to the built-in ones."""
        return {name: metric for name, metric in self.metrics.items() if name not in METRICS}

    @property
    def data(self) -> str:
        """The data set's name."""
        named = self.suite.get("data", {}).get("name")
        return str(named or next((name for name in self.trials["data"] if name), ""))

    @property
    def pairs(self) -> list[str]:
        """``teacher:student``, in the suite's order."""
        return pair_order(self.trials)

    @property
    def labels(self) -> list[str]:
        """The methods shown, in the suite's order."""
        return method_order(self.trials)

    @property
    def selects_on_validation(self) -> bool:
        """Whether any trial's epoch is selected on a validation split, by the suite or by its own result."""
        recipes = [self.suite.get("recipe", {}), *(pair.get("recipe", {}) for pair in self.suite.get("pairs", ()))]
        planned = any(recipe.get("selection") == "validation" for recipe in recipes)
        return planned or bool((self.trials["selection"] == "validation").any())

    def pair(self, pair: str) -> pd.DataFrame:
        """A pair's rows of the leaderboard, best first."""
        return self.cells[self.cells["pair"] == pair]

    def title(self, pair: str) -> str:
        """``teacher → student``."""
        first = self.trials[self.trials["pair"] == pair].iloc[0]
        return wording.pair(str(first["teacher"]), str(first["student"]))

    def done(self, pair: str) -> pd.DataFrame:
        """A pair's done trials."""
        return self.trials[(self.trials["pair"] == pair) & (self.trials["status"] == Status.DONE)]

    def has_a_teacher_for_each_seed(self, pair: str) -> bool:
        """Whether the students of each seed learned from another trained teacher."""
        found = self.done(pair).groupby("seed")["teacher_sha256"].agg(set)
        return len(found) > 1 and len(set().union(*found)) == sum(map(len, found)) == len(found)

    @cached_property
    def _tops(self) -> dict[str, dict[str, dict[int, float]]]:
        """The scores of all done trials, by pair, label and seed: grouped once, which takes pandas long for each."""
        found: dict[str, dict[str, dict[int, float]]] = {}
        done = self.trials[self.trials["status"] == Status.DONE]
        for pair, label, seed, top1 in zip(done["pair"], done["label"], done["seed"], done["top1"], strict=True):
            found.setdefault(str(pair), {}).setdefault(str(label), {})[int(seed)] = float(top1)
        return found

    def scores(self, pair: str) -> dict[str, dict[int, float]]:
        """The scores of a pair's ranked methods without a diverged trial, by label and seed, at the ranked seeds.

        Empty with one seed.
        """
        cells = self.pair(pair)
        ranked = cells[cells["rank"].notna() & (cells["diverged"] == 0)]
        seeds = [int(seed) for seed in " ".join(ranked["ranked_seeds"].iloc[:1]).split()]
        if len(seeds) < 2:
            return {}
        tops = self._tops[pair]
        return {
            str(label): {seed: tops[label][seed] for seed in seeds if seed in tops[label]} for label in ranked["label"]
        }

    def noise(self, pair: str) -> Noise | None:
        """The noise of :meth:`scores`."""
        return stats.noise(self.scores(pair), self.same_students(pair))

    def same_students(self, pair: str) -> dict[str, str]:
        """By label: the first label whose students have the same weights at all seeds."""
        return same_students(self.trials[self.trials["pair"] == pair])

    def teacher_top1(self, pair: str) -> float | None:
        """The mean test accuracy of a pair's teachers in percent, each counted once; None if no trial recorded it."""
        known = self.trials[(self.trials["pair"] == pair) & self.trials["status"].isin(FINISHED)]
        known = known.dropna(subset="teacher_top1").drop_duplicates("teacher_sha256", keep="last")
        return float(known["teacher_top1"].mean()) if len(known) else None


def read_study(
    folder: SuiteFolder,
    filters: Filters | None = None,
    plan: PlanRecord | None = None,
    highlight: Sequence[str] = (),
) -> Study:
    """Read the results of ``plan``, or of the suite as last planned, from a results folder.

    ``highlight``: labels to mark.

    Raises:
        SuiteError: a label to mark is not shown.
        ResultsError: as :func:`kdbench.report.frame.read_trials`.
    """
    filters = filters or Filters()
    # Gains over a baseline are given even if the filters exclude it.
    everyone = read_trials(folder, filters.without_methods(), plan)
    trials = select(everyone, filters)
    if trials.empty:
        trials = read_trials(folder, filters, plan)  # raises with the reason
    check_highlight(highlight, trials["label"])
    plan = plan or folder.plan or NO_PLAN
    baselines = tuple(plan.suite.get("baselines") or BASELINES)
    cells = leaderboard(everyone, method_order(trials), added=added_metrics(plan), baselines=baselines)
    methods = dict(zip(everyone["label"], everyone["method"], strict=True))
    return Study(
        folder=folder,
        plan=plan,
        filters=filters,
        trials=trials,
        cells=cells,
        overall=overall(trials, cells, baselines),
        styles=styles(methods, baselines),
        baselines=tuple(Baseline(name, baseline(everyone, name)) for name in baselines),
        metrics={**METRICS, **{metric.name: metric.spec for metric in plan.metrics}},
        highlighted=tuple(label for label in method_order(trials) if label in highlight),
    )
