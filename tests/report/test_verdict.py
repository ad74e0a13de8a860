from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdbench.report.study import read_study
from kdbench.report.verdict import standings, verdicts
from kdbench.results import SuiteFolder

ONE_TEACHER = (
    "All intervals hold for one trained teacher and this test set; a repetition with another teacher can fall outside "
    "them."
)


def build(runs: Callable[..., Any], values: dict[str, tuple[float, ...]], student: str = "resnet8") -> SuiteFolder:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, tops in values.items():
        for seed, top1 in enumerate(tops):
            suite.done("resnet20", student, label, seed, top1)
    return suite.write()


def test_the_highest_mean_and_the_differences_to_it(study: SuiteFolder) -> None:
    said = {verdict.pair: verdict for verdict in verdicts(read_study(study))}
    first = said["resnet20:resnet8"]
    assert first.leader == "vid"
    assert first.sentences == (
        # The interval: tests/report/test_leaderboard.py.
        "Highest mean here: vid, 72.77 ± 0.99 % (n=3), +1.77 [+0.34, +3.20] over none.",
        "Picked as the highest of 4, so this gain is probably too large.",
        "May equally be the best (95%, all methods at once): kd.",
        "After correction for 3 comparisons, better than none: vid and kd; not resolved: rkd.",
        "With these 3 seeds, a gain of 1.85 points is resolved with a probability of 80%; 0.3 points need 74 seeds.",
        "Incomplete, not ranked: ft (2 of 3) and deit (2 of 3).",
        "Diverged, ranked last: pkt in 1 of 3.",
    )
    assert said["resnet20:resnet14"].sentences == (
        "Highest score here: kd, 76.00 % (n=1), +1.00 over none.",
        "Picked as the highest of 2, so this gain is probably too large.",
        "One seed gives no interval: differences cannot be separated from noise.",
        "Incomplete: ranks and differences use only the seeds that all ranked methods have (0).",
    )
    assert said[""].sentences == ("Incomplete: methods can be compared only on resnet20 → resnet8 so far.", ONE_TEACHER)


def test_nothing_beats_the_baseline(runs: Callable[..., Any]) -> None:
    (said,) = verdicts(read_study(build(runs, {"none": (71.0, 71.2, 71.4), "kd": (70.0, 70.1, 70.5)})))
    assert said.sentences == (
        "Highest mean here: none, 71.20 ± 0.20 % (n=3): no method has a higher mean than the baseline, which is "
        "trained on labels only.",
        "It is better than each other ranked method (95%).",
        "In one comparison, worse: kd.",
        "With these 3 seeds, a gain of 0.31 points is resolved with a probability of 80%; 0.3 points need 4 seeds.",
        ONE_TEACHER,
    )


def test_without_a_baseline_there_is_no_gain(runs: Callable[..., Any]) -> None:
    (said,) = verdicts(read_study(build(runs, {"vid": (71.0, 72.0), "kd": (70.0, 70.1)})))
    assert said.sentences[0] == "Highest mean here: vid, 71.50 ± 0.71 % (n=2); its gain over none is unknown."


def test_a_method_that_diverged_never_leads(study: SuiteFolder) -> None:
    found = standings(read_study(study), "resnet20:resnet8")
    assert found.best is not None
    assert found.best["label"] == "vid"
    assert "pkt" not in {*found.unresolved, *found.better, *found.inconclusive, *found.worse}
    assert found.diverged == ("pkt in 1 of 3",)


def test_over_few_pairs_no_claim_about_others(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for student in ("resnet8", "resnet14"):
        for seed in range(3):
            suite.done("resnet20", student, "none", seed, 70.0 + seed)
            suite.done("resnet20", student, "kd", seed, 71.0 + 1.1 * seed)
    said = verdicts(read_study(suite.write()))[0]
    assert said.title == "All pairs"
    assert said.sentences == (
        "Lowest mean rank over these 2 pairs: kd, 1.00.",
        "2 pairs do not support a ranking beyond themselves.",
        "Its mean gain over none is +1.10 points (n=2 pairs).",
        ONE_TEACHER,
    )


def test_no_result_at_all(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.plan_trial("resnet20", "resnet8", "kd", 0)
    (said,) = verdicts(read_study(suite.write()))
    assert said.sentences == ("No trial is done yet.",)
    assert said.leader == ""


def test_methods_with_the_same_mean_rank_are_named_with_the_first(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    tops = {"resnet8": {"none": 70.0, "kd": 72.0, "vid": 71.0}, "resnet14": {"none": 74.0, "kd": 75.0, "vid": 76.0}}
    for student, labels in tops.items():
        for label, top1 in labels.items():
            suite.done("resnet20", student, label, 0, top1)
    said = next(verdict for verdict in verdicts(read_study(suite.write())) if not verdict.pair)
    assert said.sentences[0] == "Lowest mean rank over these 2 pairs: kd and vid, 1.50."
    assert said.sentences[2] == "The mean gain of kd over none is +1.50 points (n=2 pairs)."
    assert said.leader == ""


def test_far_behind_with_a_wide_interval_is_not_resolved(runs: Callable[..., Any]) -> None:
    # 42 points behind on average, at two seeds by 67 and by 17.
    found = read_study(build(runs, {"none": (80.0, 80.0), "kd": (12.93, 63.07), "vid": (79.0, 80.5)}))
    row = found.cells[found.cells["label"] == "kd"].iloc[0]
    assert (round(row["behind_best"]), row["gain_over_none_low"]) == (-42, -100)
    (said,) = verdicts(found)
    assert said.sentences == (
        "Highest mean here: none, 80.00 ± 0.00 % (n=2): no method has a higher mean than the baseline, which is "
        "trained on labels only.",
        "May equally be the best (95%, all methods at once): vid and kd.",
        "After correction for 2 comparisons, not resolved: vid and kd.",
        "With these 2 seeds, no gain is resolved reliably.",
        ONE_TEACHER,
    )


def test_methods_with_the_highest_mean_are_named_together(runs: Callable[..., Any]) -> None:
    (said,) = verdicts(read_study(build(runs, {"none": (70.0, 71.0), "kd": (72.0, 73.0), "vid": (73.0, 72.0)})))
    assert said.sentences[0] == "Highest mean here: kd and vid, 72.50 ± 0.71 % (n=2), +2.00 [−2.46, +6.46] over none."


def test_a_method_that_has_just_begun_does_not_shrink_the_comparison(runs: Callable[..., Any]) -> None:
    # On seeds 0 and 1, which all three have, none is ahead of kd; over the ten of none and kd, kd is.
    none = [70.0 + 0.1 * seed for seed in range(10)]
    gains = (-0.1, -0.2, 2.0, 2.2, 2.0, 2.2, 2.0, 2.2, 2.0, 2.2)
    kd = [base + gain for base, gain in zip(none, gains, strict=True)]
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, tops in (("none", none), ("kd", kd), ("vid", [69.0, 69.5])):
        for seed in range(12):
            if seed < len(tops):
                suite.done("resnet20", "resnet8", label, seed, tops[seed])
            else:
                suite.plan_trial("resnet20", "resnet8", label, seed)
    (said,) = verdicts(read_study(suite.write()))
    assert said.leader == "kd"
    assert "(n=10), +1.65 [" in said.sentences[0]
    assert said.sentences[1:] == (
        "Picked as the highest of 2, so this gain is probably too large.",
        "It is better than each other ranked method (95%).",
        "In one comparison on these seeds, better than none: kd.",
        "With these 10 seeds, a gain of 0.95 points is resolved with a probability of 80%; 0.3 points need 82 seeds.",
        "Incomplete: ranks and differences use only the seeds that all ranked methods have (0, 1, 2, 3, 4, 5, 6, 7, 8 "
        "and 9).",
        "Incomplete, not ranked: vid (2 of 12).",
        ONE_TEACHER,
    )


def test_the_difference_to_a_method_that_diverged_has_no_interval(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, tops in (("none", (70.0, 71.0)), ("kd", (75.0, 76.1))):
        for seed, top1 in enumerate(tops):
            suite.done("resnet20", "resnet8", label, seed, top1)
    suite.done("resnet20", "resnet8", "pkt", 0, 74.9)
    suite.diverged("resnet20", "resnet8", "pkt", 1, epoch=1)
    (said,) = verdicts(read_study(suite.write()))
    assert said.sentences[2] == "It is better than each other ranked method without a diverged trial (95%)."


def test_the_mean_of_a_leader_in_a_run_under_way_is_over_the_compared_seeds(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0)
    suite.plan_trial("resnet20", "resnet8", "none", 1)
    suite.plan_trial("resnet20", "resnet8", "none", 2)
    suite.done("resnet20", "resnet8", "kd", 0, 71.0)
    suite.done("resnet20", "resnet8", "kd", 1, 90.0)
    suite.plan_trial("resnet20", "resnet8", "kd", 2)
    (said,) = verdicts(read_study(suite.write()))
    assert said.sentences == (
        "Highest score here: kd, 71.00 % (n=1), +1.00 over none.",
        "Picked as the highest of 2, so this gain is probably too large.",
        "One seed gives no interval: differences cannot be separated from noise.",
        "Incomplete: ranks and differences use only the seeds that all ranked methods have (0).",
    )


def test_students_with_the_same_weights_are_said_to_be_the_same(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    # kd/w0 is none, weight for weight; vid has the same accuracies as none by chance.
    tops = {
        "none": (70.0, 70.4, 70.1),
        "kd/w0": (70.0, 70.4, 70.1),
        "vid": (70.0, 70.4, 70.1),
        "kd": (71.2, 71.1, 71.0),
    }
    for label, values in tops.items():
        for seed, top1 in enumerate(values):
            weights = f"{seed}".encode() if label in {"none", "kd/w0"} else None
            suite.done("resnet20", "resnet8", label, seed, top1, weights=weights)
    study = read_study(suite.write())
    found = standings(study, "resnet20:resnet8")
    assert found.same == (("none", "kd/w0"),)
    assert (found.better, found.inconclusive, found.unclear) == (("kd",), ("vid",), ())
    cells = study.cells.set_index("label")
    assert (cells.loc["kd/w0", "gain_over_none_low"], cells.loc["kd/w0", "gain_over_none_high"]) == (0, 0)
    assert cells.loc["vid", "gain_over_none_low"] < 0 < cells.loc["vid", "gain_over_none_high"]
    (said,) = verdicts(study)
    assert "none and kd/w0 have the same weights at each seed: their differences are exactly 0." in said.sentences
    assert any(sentence.startswith("After correction for 2 comparisons") for sentence in said.sentences)


def test_the_same_weights_at_some_seeds_are_not_the_same_method(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label, last in (("none", b"one"), ("kd", b"another")):
        for seed, weights in enumerate((b"equal", b"equal", last)):
            suite.done("resnet20", "resnet8", label, seed, 70.0 + seed, weights=weights)
    study = read_study(suite.write())
    assert standings(study, "resnet20:resnet8").same == ()
    # Nothing varies, so there is no interval.
    assert study.cells["gain_over_none_low"].isna().all()


def test_the_leader_over_pairs_is_compared_with_the_baseline_once(runs: Callable[..., Any]) -> None:
    # On some pairs far ahead of the baseline, on others behind it; always about a point ahead of kd.
    ahead = (3.0, -1.0, 2.5, -0.5, 1.0, 0.2)
    suite = runs()
    for index, gain in enumerate(ahead):
        suite.teacher(f"teacher{index}", 80.0)
        tops = {"none": 70.0, "vid": 70.0 + gain, "kd": 69.0 + gain + index / 50}
        for label, top1 in tops.items():
            suite.done(f"teacher{index}", "resnet8", label, 0, top1)
    said = next(verdict for verdict in verdicts(read_study(suite.write())) if not verdict.pair)
    assert said.leader == "vid"
    assert said.sentences[2:4] == (
        "Over pairs, after correction for 2 comparisons, not resolved: vid and kd.",
        "It differs from every method besides the baseline (corrected for 3 comparisons).",
    )
