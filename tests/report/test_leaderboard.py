from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.report.leaderboard import COLUMNS, columns, leaderboard
from kdbench.report.render import markdown
from kdbench.report.study import Study, read_study
from kdbench.report.styles import INK, NEUTRAL, PALETTE
from kdbench.report.verdict import verdicts
from kdbench.results import SuiteFolder
from kdbench.suite.filters import Filters

NONE, KD, VID, RKD = (70.0, 71.0, 72.0), (72.0, 72.5, 73.5), (72.1, 72.3, 73.9), (69.0, 71.5, 72.5)


def residual_std(*rows: tuple[float, ...]) -> float:
    """Of methods and seeds without gaps, after the means of both are subtracted."""
    scores = np.array(rows)
    rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    return float(np.sqrt((rest**2).sum() / ((len(rows) - 1) * (scores.shape[1] - 1))))


def cell(study: Study, label: str, pair: str = "resnet20:resnet8") -> pd.Series:
    rows = study.cells[(study.cells["label"] == label) & (study.cells["pair"] == pair)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture(scope="module")
def read(untouched_study: SuiteFolder) -> Study:
    return read_study(untouched_study)


def test_columns(read: Study) -> None:
    assert tuple(read.cells.columns) == COLUMNS
    assert COLUMNS[:9] == (
        "teacher", "student", "method", "n", "diverged", "top1_mean", "top1_std", "gain_over_none", "seconds",
    )  # fmt: skip


def test_mean_and_standard_deviation_with_n(read: Study) -> None:
    row = cell(read, "vid")
    assert row["n"] == 3
    assert row["top1_mean"] == pytest.approx(np.mean(VID))
    assert row["top1_std"] == pytest.approx(np.std(VID, ddof=1))
    assert row["seconds"] == 11.0


@pytest.mark.parametrize(("label", "reference", "values", "base"), [
    ("vid", "none", VID, NONE), ("vid", "kd", VID, KD), ("kd", "none", KD, NONE), ("none", "kd", NONE, KD),
])  # fmt: skip
def test_gains_are_paired_by_seed(
    read: Study, label: str, reference: str, values: tuple[float, ...], base: tuple[float, ...]
) -> None:
    row = cell(read, label)
    gain = np.mean(values) - np.mean(base)
    # Dunnett's value for three comparisons and 6 degrees of freedom; between 71 and 73 %, the noise is nearly the same.
    half = 3.10 * residual_std(NONE, KD, VID, RKD) * np.sqrt(2 / 3)
    assert row[f"gain_over_{reference}_n"] == 3
    assert row[f"gain_over_{reference}"] == pytest.approx(gain)
    assert row[f"gain_over_{reference}_low"] == pytest.approx(gain - half, abs=0.02)
    assert row[f"gain_over_{reference}_high"] == pytest.approx(gain + half, abs=0.02)
    assert row[f"gain_over_{reference}_resolved"] == (abs(gain) > half)


def test_incomplete_and_diverged_methods_have_no_interval(read: Study) -> None:
    for label in ("ft", "deit", "pkt"):
        row = cell(read, label)
        assert row["gain_over_none_n"] == 2
        assert pd.isna(row["gain_over_none_low"])


def test_the_baseline_gains_nothing_over_itself(read: Study) -> None:
    assert pd.isna(cell(read, "none")["gain_over_none"])
    assert pd.isna(cell(read, "kd")["gain_over_kd"])
    assert cell(read, "none")["gain_over_none_n"] == 0


def test_diverged_are_counted_and_ranked_last(read: Study) -> None:
    row = cell(read, "pkt")
    assert (row["n"], row["diverged"], row["planned"]) == (2, 1, 3)
    assert row["top1_mean"] == 75.5  # the best of all, if one only looked at what is left
    assert row["rank"] == 5
    # What is left after a divergence is chosen by its outcome: no comparison with the best.
    assert row[["behind_best", "behind_best_resolved"]].isna().all()
    assert row["gain_over_none_n"] == 2


def test_ranks_follow_the_means(read: Study) -> None:
    ranks = {label: cell(read, label)["rank"] for label in ("vid", "kd", "none", "rkd")}
    # 72.77, 72.67, and two of 71.0 each.
    assert ranks == {"vid": 1, "kd": 2, "none": 3.5, "rkd": 3.5}
    assert cell(read, "vid")["ranked_seeds"] == "0 1 2"


def test_what_is_incomplete_is_not_ranked_against_means_over_other_seeds(read: Study) -> None:
    # ft and deit have two of three seeds: 71.5 over seeds 0 and 1, where none has 70.5 but 71 over all three.
    for label in ("ft", "deit"):
        row = cell(read, label)
        assert (row["n"], row["ranked_seeds"]) == (2, "")
        assert pd.isna(row["rank"])


def test_ranks_in_a_run_under_way_compare_common_seeds(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    # Seed 1 is an easy one: by the means of what is there, kd would be first.
    for label, tops in {"none": (70.0, None, None), "kd": (71.0, 90.0, None), "vid": (72.0, None, None)}.items():
        for seed, top1 in enumerate(tops):
            if top1 is None:
                suite.plan_trial("resnet20", "resnet8", label, seed)
            else:
                suite.done("resnet20", "resnet8", label, seed, top1)
    read = read_study(suite.write())
    assert {label: cell(read, label)["rank"] for label in ("vid", "kd", "none")} == {"vid": 1, "kd": 2, "none": 3}
    assert set(read.cells["ranked_seeds"]) == {"0"}
    assert read.overall.partial
    assert [(s.label, s.rank.mean) for s in read.overall.standings if s.rank] == [("vid", 1), ("kd", 2), ("none", 3)]


def test_gains_in_a_run_under_way_are_over_the_ranked_seeds(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    tops = {"none": (None, 70.0, 70.5, 71.0, None), "kd": (72.0, 73.0, 74.0, None, None)}
    tops["vid"] = (73.0, 74.0, 75.5, 60.0, None)
    for label, values in tops.items():
        for seed, top1 in enumerate(values):
            if top1 is None:
                suite.plan_trial("resnet20", "resnet8", label, seed)
            else:
                suite.done("resnet20", "resnet8", label, seed, top1)
    read = read_study(suite.write())
    ranked = {label: (cell(read, label)["rank"], cell(read, label)["ranked_seeds"]) for label in ("vid", "kd")}
    assert ranked == {"vid": (1, "0 1 2"), "kd": (2, "0 1 2")}
    assert pd.isna(cell(read, "none")["rank"])
    # Without seed 3, at which vid is 11 points below none: there is no rank over that seed.
    assert tuple(cell(read, "vid")[["gain_over_none", "gain_over_none_n"]]) == (4.5, 2)


def test_methods_without_a_common_seed_are_not_ranked(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 90.0)
    suite.plan_trial("resnet20", "resnet8", "none", 1)
    suite.plan_trial("resnet20", "resnet8", "kd", 0)
    suite.done("resnet20", "resnet8", "kd", 1, 70.0)
    read = read_study(suite.write())
    assert read.cells["rank"].isna().all()
    assert read.overall.methods == ()


def test_who_shares_the_highest_mean_has_the_credit(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for student in ("resnet8", "resnet14"):
        for label, top1 in (("none", 70.0), ("kd", 72.0), ("vid", 72.0)):
            suite.done("resnet20", student, label, 0, top1)
    standings = read_study(suite.write()).overall.standings
    assert {s.label: s.rank.mean for s in standings if s.rank} == {"kd": 1.5, "vid": 1.5, "none": 3}
    assert {s.label: s.improvement for s in standings} == {"kd": 1.0, "vid": 1.0, "none": None}


def test_missing_trials_are_counted_not_filled_in(read: Study) -> None:
    assert tuple(cell(read, "ft")[["n", "failed", "planned"]]) == (2, 1, 3)
    assert tuple(cell(read, "deit")[["n", "pending", "planned"]]) == (2, 1, 3)
    assert tuple(cell(read, "ab")[["n", "skipped", "planned"]]) == (0, 3, 3)
    assert pd.isna(cell(read, "ab")["rank"])
    assert cell(read, "ab")["reason"] == "ab needs pre-activation taps; resnet8 has none"
    # Against the baseline only where both have the seed: 71 - 70 and 72 - 71.
    assert (cell(read, "ft")["gain_over_none"], cell(read, "ft")["gain_over_none_n"]) == (1.0, 2)


def test_rows_stand_best_first_and_those_without_a_result_last(read: Study) -> None:
    labels = list(read.pair("resnet20:resnet8")["label"])
    assert labels == ["vid", "kd", "none", "rkd", "pkt", "ft", "deit", "ab"]


def test_what_is_not_resolved_from_the_best(read: Study) -> None:
    # Dunnett's one-sided value for three comparisons and 6 degrees of freedom.
    half = 2.56 * residual_std(NONE, KD, VID, RKD) * np.sqrt(2 / 3)
    behind = np.mean(KD) - np.mean(VID)
    row = cell(read, "kd")
    assert (row["behind_best_low"], row["behind_best_high"]) == pytest.approx((behind - half, behind + half), abs=0.02)
    assert not row["behind_best_resolved"]
    row = cell(read, "none")
    assert row["behind_best_resolved"] == (np.mean(NONE) - np.mean(VID) + half < 0)
    assert row["behind_best_high"] == 0
    assert pd.isna(cell(read, "vid")["behind_best_resolved"])


def test_one_seed_decides_nothing(read: Study) -> None:
    row = cell(read, "kd", "resnet20:resnet14")
    assert (row["n"], row["gain_over_none"]) == (1, 1.0)
    assert row[["top1_std", "gain_over_none_low", "gain_over_none_high", "gain_over_none_resolved"]].isna().all()


def test_a_filtered_baseline_still_is_the_baseline(study: SuiteFolder) -> None:
    read = read_study(study, Filters(methods=["vid", "rkd"]))
    assert set(read.cells["label"]) == {"vid", "rkd"}
    assert cell(read, "vid")["gain_over_none"] == pytest.approx(np.mean(VID) - np.mean(NONE))
    assert cell(read, "rkd")["rank"] == 2
    assert read.reference.label == "none"


def test_stale_results_stand_in_no_mean(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0, sha256="b" * 64)
    suite.done("resnet20", "resnet8", "kd", 0, 72.0)
    suite.done("resnet20", "resnet8", "kd", 1, 10.0, sha256="c" * 64)
    row = cell(read_study(suite.write()), "kd")
    assert (row["n"], row["stale"], row["top1_mean"]) == (1, 1, 72.0)


def test_a_labelled_baseline_is_found_by_its_method(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "alone", 0, 70.0, method="none")
    suite.done("resnet20", "resnet8", "kd", 0, 72.0)
    read = read_study(suite.write())
    assert read.reference.label == "alone"
    assert cell(read, "kd")["gain_over_none"] == 2.0
    assert pd.isna(cell(read, "alone")["gain_over_none"])


@pytest.fixture
def six_pairs(runs: Callable[..., Any]) -> SuiteFolder:
    """Six pairs, two seeds. Gains over none: kd 1 to 6 points, vid always 0.5 more than kd; fsp cannot read the first
    pair, and rkd diverges on the last."""
    suite = runs("many")
    for index in range(6):
        teacher = f"teacher{index}"
        suite.teacher(teacher, 90.0)
        for seed in range(2):
            base = 60.0 + index + 0.1 * seed
            suite.done(teacher, "resnet8", "none", seed, base)
            suite.done(teacher, "resnet8", "kd", seed, base + index + 1, cost={"seconds": 2 * (10.0 + seed)})
            suite.done(teacher, "resnet8", "vid", seed, base + index + 1.5)
            if index == 5 and seed == 1:
                suite.diverged(teacher, "resnet8", "rkd", seed, epoch=1)
            else:
                suite.done(teacher, "resnet8", "rkd", seed, base + 10)
            if index == 0:
                suite.plan_trial(teacher, "resnet8", "fsp", seed, status="skipped", reason="shapes differ")
            else:
                suite.done(teacher, "resnet8", "fsp", seed, base - 1)
    return suite.write()


def test_over_pairs(six_pairs: SuiteFolder) -> None:
    whole = read_study(six_pairs).overall
    found = {standing.label: standing for standing in whole.standings}
    assert whole.methods == ("none", "kd", "vid", "rkd")
    assert len(whole.pairs) == 6
    assert not whole.partial
    ranks = {label: found[label].rank.mean for label in whole.methods if found[label].rank is not None}
    # rkd first but on the last pair, where it is last.
    assert ranks == pytest.approx({
        "rkd": (5 * 1 + 4) / 6, "vid": (5 * 2 + 1) / 6, "kd": (5 * 3 + 2) / 6, "none": (5 * 4 + 3) / 6,
    })  # fmt: skip
    gains = [1, 2, 3, 4, 5, 6]
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    kd = found["kd"].gain
    assert (kd.n, kd.mean, kd.low, kd.high) == pytest.approx((6, 3.5, interval.low, interval.high))
    assert found["kd"].relative_seconds == pytest.approx(2.0)
    assert (found["rkd"].diverged, found["rkd"].finished) == (1, 12)
    # kd gains 1 to 6 points, vid half a point more; rkd gains the same on each pair, which gives no interval.
    assert stats.ttest_1samp(gains, 0).pvalue < 0.05 / 2
    assert [found[label].words[0] for label in ("kd", "vid", "none", "rkd")] == ["better", "better", "", ""]
    assert found["kd"].improvement == 1.0
    assert found["kd"].useful == pytest.approx(stats.t.cdf((3.5 - 0.3) / np.sqrt(3.5 / 6), 5))
    # vid is half a point above kd on each pair, and rkd diverged: two differences, in both orders.
    assert set(whole.differences) == {("kd", "none"), ("none", "kd"), ("vid", "none"), ("none", "vid")}
    forth, back = whole.differences["kd", "none"], whole.differences["none", "kd"]
    assert (forth.word, back.word) == ("better", "worse")
    assert (back.found.low, back.found.mean, back.found.high) == pytest.approx((-interval.high, -3.5, -interval.low))
    # Of two comparisons, that of vid has the smaller p-value, which is doubled.
    doubled = 2 * stats.ttest_1samp([gain + 0.5 for gain in gains], 0).pvalue
    assert whole.differences["vid", "none"].p_value == pytest.approx(doubled)
    assert forth.p_value == pytest.approx(max(stats.ttest_1samp(gains, 0).pvalue, doubled))
    assert [standing.label for standing in whole.standings] == ["rkd", "vid", "kd", "none", "fsp"]


def test_a_method_that_misses_a_pair_is_not_ranked(six_pairs: SuiteFolder) -> None:
    fsp = read_study(six_pairs).overall.standings[-1]
    assert (fsp.label, fsp.rank, fsp.pairs) == ("fsp", None, 5)
    assert fsp.why_unranked == "skipped on 1 of the compared pairs"
    assert fsp.gain.mean == pytest.approx(-1.0)


def test_friedmans_test_over_complete_pairs(six_pairs: SuiteFolder) -> None:
    comparison = read_study(six_pairs).overall.comparison
    assert comparison is not None
    oracle = stats.friedmanchisquare([1] * 6, [2] * 5 + [3], [3] * 5 + [4], [4] * 5 + [0])
    assert (comparison.pairs, comparison.methods) == (6, 4)
    assert comparison.statistic == pytest.approx(oracle.statistic)
    assert comparison.p_value == pytest.approx(oracle.pvalue)


def test_a_run_that_has_just_begun_is_ranked_provisionally(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, top1 in (("none", 70.0), ("kd", 71.0)):
        suite.done("resnet20", "resnet8", label, 0, top1)
        suite.plan_trial("resnet20", "resnet8", label, 1)
    whole = read_study(suite.write()).overall
    assert whole.partial
    assert [(s.label, s.rank.mean if s.rank else None) for s in whole.standings] == [("kd", 1.0), ("none", 2.0)]
    assert whole.comparison is None


def test_nothing_done_is_nothing_ranked(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.plan_trial("resnet20", "resnet8", "kd", 0)
    read = read_study(suite.write())
    assert read.overall.methods == ()
    assert read.cells["rank"].isna().all()
    assert len(leaderboard(read.trials)) == 1


def test_a_suite_chooses_its_baselines(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, top1, method in (("kd", 72.0, "kd"), ("hot", 73.0, "vid"), ("none", 70.0, "none")):
        for seed in (0, 1):
            suite.done("resnet20", "resnet8", label, seed, top1 + seed, method=method, cost={"seconds": top1})
    suite.tables["baselines"] = ["vid", "kd", "none"]
    found = read_study(suite.write())
    assert [(baseline.name, baseline.label) for baseline in found.baselines] == [
        ("vid", "hot"), ("kd", "kd"), ("none", "none"),
    ]  # fmt: skip
    names = [name for name in found.cells.columns if name.startswith("gain_over") and name.count("_") == 2]
    assert names == ["gain_over_vid", "gain_over_kd", "gain_over_none"]
    assert list(cell(found, "none")[names].fillna(0.0)) == [-3.0, -2.0, 0.0]
    assert [standing.gain.mean for standing in found.overall.standings if standing.label == "kd"] == [-1.0]
    (kd,) = (standing for standing in found.overall.standings if standing.label == "kd")
    assert kd.relative_seconds == pytest.approx(72 / 73)
    assert (found.styles["hot"].colour, found.styles["kd"].colour) == (NEUTRAL, INK)
    assert found.styles["none"].colour in PALETTE


def test_one_baseline_is_enough(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, top1 in (("kd", 72.0), ("vid", 73.0)):
        suite.done("resnet20", "resnet8", label, 0, top1)
    suite.tables["baselines"] = ["kd"]
    folder = suite.write()
    found = read_study(folder)
    assert tuple(found.cells.columns) == columns(baselines=["kd"])
    assert cell(found, "vid")["gain_over_kd"] == 1.0
    (pair,) = verdicts(found)
    assert pair.sentences[0] == "Highest score here: vid, 73.00 % (n=1), +1.00 over kd."
    board = markdown(found)
    assert "| n | gain over kd | difference to highest |" in board
